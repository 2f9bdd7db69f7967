use super::*;

/// Data as text, other items in angle brackets.
fn read(pieces: impl IntoIterator<Item = impl AsRef<[u8]>>) -> Vec<String> {
    let mut events = Events::default();
    let mut all = Vec::new();
    for piece in pieces {
        events.extend(piece.as_ref());
        all.extend(std::iter::from_fn(|| events.pop()));
    }
    events.end();
    all.extend(std::iter::from_fn(|| events.pop()));
    let text = |bytes: Bytes| String::from_utf8(bytes.to_vec()).unwrap();
    let shown = |event| match event {
        Event::Data(data) => text(data),
        Event::Unrecognized(line) => format!("<{}>", text(line)),
        Event::TooLong => "<too long>".to_owned(),
    };
    all.into_iter().map(shown).collect()
}

/// Reads a stream at once, cut in two at each position, and byte by byte.
fn check(stream: &str, expected: &[&str]) {
    assert_eq!(read([stream]), expected, "{stream:?}");
    assert_eq!(read(stream.as_bytes().chunks(1)), expected, "{stream:?} by bytes");
    for cut in 0..stream.len() {
        let (one, other) = stream.as_bytes().split_at(cut);
        assert_eq!(read([one, other]), expected, "{stream:?} cut at {cut}");
    }
}

#[test]
fn events_are_found_wherever_the_bytes_are_cut() {
    let stream =
        "data: {\"a\":1}\r\n\r\n: comment\nevent: x\nid\nretry: 5\ndata:{\"ß\":2}\n\ndata: last";
    check(stream, &["{\"a\":1}", "{\"ß\":2}", "last"]);
    check("data: 1\r\rdata: 2\r\r", &["1", "2"]);
    check("\u{feff}data: [DONE]\n\n", &["[DONE]"]);
    check("", &[]);
    check("\r\n", &[]);
    check("data:\ndata\n\n", &[]);
}

#[test]
fn an_error_between_events_is_found_in_every_notation() {
    let pretty = "{\n  \"error\": {\n    \"code\": 503,\n    \"message\": \"a } \\\" b\"\n  }\n}";
    let one_line = r#"{"error":{"code":503,"message":"a } \" b"}}"#;
    for ending in ["\n", "\r\n"] {
        let pretty = pretty.replace('\n', ending);
        for (error, found) in [(&*pretty, &*pretty), (one_line, one_line)] {
            let before = format!("data: 1{ending}{ending}");
            check(&format!("{before}{error}"), &["1", found]);
            check(&format!("{before}{error}{ending}data: 2{ending}"), &["1", found, "2"]);
            check(&format!("{before}[{error}{ending}]{ending}"), &["1", found]);
            check(&format!("\u{feff}{error}"), &[found]);
            check(&format!("{before}proxy says {error}"), &["1", "<proxy says>", found]);
        }
        let event = format!("event: error{ending}data: {one_line}{ending}{ending}");
        check(&event, &[one_line]);
    }
}

#[test]
fn several_lines_of_data_are_one_event() {
    check("data: {\ndata: \"a\":1\ndata: }\n\ndata: 2\n\n", &["{\n\"a\":1\n}\n", "2"]);
    check("data: [1,\r\ndata: 2]", &["[1,\n2]\n"]);
    check("data: {\n{\"a\":1}", &["{\n", "{\"a\":1}"]);
}

#[test]
fn the_items_of_a_list_are_events() {
    check("[{\"a\":1}\r\n,\r\n{\"b\":[{}]}]\n", &["{\"a\":1}", "{\"b\":[{}]}"]);
    check("{\"a\":", &["{\"a\":"]);
}

#[test]
fn unrecognized_lines_are_reported() {
    check("data: 1\n\nupstream failed\n\ndata: 2\n\n", &["1", "<upstream failed>", "2"]);
    check("<html>\n{not json}", &["<<html>>", "{not json}"]);
    check("say {x} twice\ndatabase: 1", &["<say {x} twice>", "<database: 1>"]);
}

#[test]
fn an_unfinished_item_is_not_kept_beyond_the_limit() {
    for start in ["data: \"", "{\"a\":\""] {
        let mut events = Events::within(1000);
        events.extend(start.as_bytes());
        for _ in 0..10_000 {
            events.extend(&[b'x'; 100]);
            assert_eq!(events.pop(), None);
            assert!(events.bytes.len() <= 1000);
        }
        events.extend(b"\"}\ndata: 2\n");
        assert_eq!(events.pop(), Some(Event::TooLong));
        assert_eq!(events.pop(), Some(Event::Data(Bytes::from_static(b"2"))));
    }
    let mut events = Events::within(1000);
    for _ in 0..10_000 {
        events.extend(b"data: {xxxxx\n");
        while events.pop().is_some() {}
        assert!(events.data.len() <= 1000);
    }
}

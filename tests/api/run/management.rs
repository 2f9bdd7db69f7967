//! `jobs`: what lists and changes the jobs of a service.

use super::*;

/// The service is killed while its results are read, and restarts.
#[tokio::test]
async fn results_that_are_followed_go_on_after_a_restart_of_the_service() {
    let site = Site::new(20).await;
    site.write_prompts("prompts.txt", 300);
    let data = Arc::new(TempDir::new().expect("a folder"));
    let service = site.serve(&data, 0).await;
    let (url, port) = (service.url(""), service.address.port());
    let program = |arguments: &[&str]| {
        site.program(arguments).set("GATEWAY_URL", &url).set("ADMIN_API_KEY", ADMIN_KEY)
    };
    let run = program(&["run", "prompts.txt", "-o", "out.jsonl"]).spawn();
    site.until_answered(1).await;
    let list = program(&["jobs", "list", "--json"]).output().await;
    let list: Value = serde_json::from_slice(&list.stdout).expect("JSON");
    let id = list["jobs"][0]["job_id"].as_str().expect("an id");
    let mut follow = program(&["jobs", "results", id, "--follow"]).spawn();
    let mut copied = BufReader::new(follow.stdout.take().expect("a pipe")).lines();
    let mut lines = Vec::new();
    while lines.len() < 60 {
        lines.push(copied.next_line().await.expect("it reads").expect("a line"));
    }
    service.kill().await;
    let _service = site.serve(&data, port).await;
    while let Some(line) = copied.next_line().await.expect("it reads") {
        lines.push(line);
    }
    let output = end(follow).await;
    assert_eq!(code(&output), 0, "{}", errors(&output));
    assert_eq!(code(&end(run).await), 0);
    let indices: Vec<_> = (lines.iter())
        .map(|line| serde_json::from_str::<Value>(line).expect(line)["index"].as_u64().unwrap())
        .collect();
    assert_eq!(indices, (0..300).collect::<Vec<_>>());
}

#[tokio::test]
async fn jobs_of_a_service_are_listed_and_changed() {
    let site = Site::new(0).await;
    site.write("a.jsonl", "{\"prompt\": \"one\"}\n{\"prompt\": \"[[simulate:blocked=SAFETY]]\"}\n");
    let data = Arc::new(TempDir::new().expect("a folder"));
    let service = site.serve(&data, 0).await;
    let port = service.address.port().to_string();
    let program = |arguments: &[&str]| {
        let program = site.program(arguments).unset("PORT").set("PORT", &port);
        program.set("ADMIN_API_KEY", ADMIN_KEY).set("GATEWAY_URL", &service.url(""))
    };
    let output = program(&["run", "a.jsonl"]).output().await;
    assert_eq!(code(&output), 3, "{}", errors(&output));

    let list = program(&["jobs", "list", "--json"]).output().await;
    let list: Value = serde_json::from_slice(&list.stdout).expect("JSON");
    let id = list["jobs"][0]["job_id"].as_str().expect("an id");
    let run = async |arguments: &[&str]| {
        let output = program(arguments).unset("GATEWAY_URL").output().await;
        (
            code(&output),
            String::from_utf8(output.stdout).unwrap(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    let (status, table, _) = run(&["jobs", "list"]).await;
    assert!(status == 0 && table.contains(id) && table.contains("a.jsonl"), "{table}");
    let (status, shown, _) = run(&["jobs", "show", id]).await;
    assert!(status == 0 && shown.contains("2 of 2 items have a result"), "{shown}");
    let (status, results, _) = run(&["jobs", "results", id]).await;
    assert_eq!((status, results.lines().count()), (0, 2));
    let (status, _, message) =
        run(&["jobs", "results", id, "--failed", "-o", "failed.jsonl"]).await;
    assert_eq!((status, site.lines("failed.jsonl").len()), (0, 1), "{message}");
    site.write("new.jsonl.part", "mine");
    for (output, force, expected) in [
        ("failed.jsonl", false, "failed.jsonl exists; --force replaces it"),
        ("new.jsonl", false, "new.jsonl.part exists; --force replaces it"),
        ("/dev/null", false, "is not a regular file"),
        ("/dev/null", true, "is not a regular file"),
    ] {
        let force = if force { &["--force"][..] } else { &[] };
        let (status, _, message) =
            run(&[&["jobs", "results", id, "-o", output], force].concat()).await;
        assert!(status == 2 && message.contains(expected), "{message}");
    }
    assert_eq!(site.read("new.jsonl.part"), "mine");
    let (status, _, message) = run(&["jobs", "cancel", id]).await;
    assert_eq!(status, 69, "a completed job cannot be cancelled: {message}");
    let (status, _, message) = run(&["jobs", "retry", id, "--all"]).await;
    assert_eq!(status, 0, "{message}");
    let (status, results, _) = run(&["jobs", "results", id, "--follow"]).await;
    assert_eq!((status, results.lines().count()), (0, 2));
    assert_eq!(run(&["jobs", "delete", id]).await.0, 0);
    let (status, _, message) = run(&["jobs", "show", id]).await;
    assert_eq!(status, 69, "{message}");
}

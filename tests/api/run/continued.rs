//! Runs that end before their job does, and the commands that continue them.

use super::*;

/// Killed several times, it asks again only what was in flight.
#[tokio::test]
async fn a_run_that_was_killed_is_continued_by_the_same_command() {
    let site = Site::new(20).await;
    site.write_prompts("prompts.txt", 300);
    let command = ["run", "prompts.txt", "-o", "results.jsonl"];
    let kills = 3;
    for killed in 1..=kills {
        let mut child = site.program(&command).spawn();
        site.until_answered(killed * 60).await;
        child.kill().await.expect("it runs");
        assert!(!site.path("results.jsonl").exists());
    }
    let output = site.program(&command).output().await;
    assert_eq!(code(&output), 0, "{}", errors(&output));
    site.check_answers("results.jsonl", 300);
    site.check_tidy("results.jsonl");
    let asked = site.asked();
    assert_eq!(asked.len(), 300);
    let repeated: usize = asked.values().map(|times| times - 1).sum();
    // Those in flight, and those whose answers were not recorded yet.
    assert!(repeated <= kills * (8 + 16), "{repeated} were asked again");
}

#[tokio::test]
async fn a_run_that_was_interrupted_repeats_no_call() {
    let site = Site::new(20).await;
    site.write_prompts("prompts.txt", 300);
    let command = ["run", "prompts.txt", "-o", "results.jsonl"];
    for (signal, status) in [("INT", 130), ("TERM", 143)] {
        let before = site.answered();
        let child = site.program(&command).spawn();
        site.until_answered(before + 50).await;
        kill(&child, signal).await;
        let output = end(child).await;
        let message = errors(&output);
        assert_eq!(code(&output), status, "{message}");
        assert!(
            message.contains("of 300 items are answered; the same command continues"),
            "{message}"
        );
    }
    let output = site.program(&command).output().await;
    assert_eq!(code(&output), 0, "{}", errors(&output));
    site.check_answers("results.jsonl", 300);
    let asked = site.asked();
    assert!(asked.values().all(|times| *times == 1), "{asked:?}");
}

#[tokio::test]
async fn another_run_does_not_take_the_output_of_one_that_is_not_complete() {
    let site = Site::new(50).await;
    site.write_prompts("prompts.txt", 100);
    site.write("other.txt", "other");
    let child = site.program(&["run", "prompts.txt", "-o", "out.jsonl"]).spawn();
    site.until_answered(1).await;
    let busy = site.program(&["run", "prompts.txt", "-o", "out.jsonl"]).output().await;
    assert_eq!(code(&busy), 75, "{}", errors(&busy));
    kill(&child, "INT").await;
    assert_eq!(code(&end(child).await), 130);
    let other = site.program(&["run", "other.txt", "-o", "out.jsonl"]).output().await;
    assert_eq!(code(&other), 2);
    assert!(errors(&other).contains("belongs to a run with another input"), "{}", errors(&other));
}

#[tokio::test]
async fn an_invalid_key_pauses_the_run_until_there_is_a_better_one() {
    let site = Site::new(0).await;
    site.write_prompts("prompts.txt", 20);
    let command = ["run", "prompts.txt", "-o", "out.jsonl"];
    let wrong = site.program(&command).unset("GEMINI_API_KEY").set("GEMINI_API_KEY", "invalid-key");
    let output = wrong.output().await;
    assert_eq!(code(&output), 77, "{}", errors(&output));
    assert!(errors(&output).contains("invalid_api_key"), "{}", errors(&output));
    let output = site.program(&command).output().await;
    assert_eq!(code(&output), 0, "{}", errors(&output));
    site.check_answers("out.jsonl", 20);
}

/// The service is killed while it works, and restarts.
#[tokio::test]
async fn a_run_follows_its_job_through_a_restart_of_the_service() {
    let site = Site::new(20).await;
    site.write_prompts("prompts.txt", 300);
    let data = Arc::new(TempDir::new().expect("a folder"));
    let service = site.serve(&data, 0).await;
    let (url, port) = (service.url(""), service.address.port());
    let program = |key: &str, value: &str| {
        let program = site.program(&["run", "prompts.txt", "-o", "out.jsonl", "--url", &url]);
        program.unset("GEMINI_API_KEY").set(key, value)
    };
    let child = program("ADMIN_API_KEY", ADMIN_KEY).spawn();
    site.until_answered(60).await;
    service.kill().await;
    let service = site.serve(&data, port).await;
    site.until_answered(150).await;
    kill(&child, "INT").await;
    let output = end(child).await;
    assert_eq!(code(&output), 130, "{}", errors(&output));
    let jobs = answer(admin(service.get("/jobs"))).await.body;
    assert_eq!(
        (&jobs["jobs"][0]["status"], jobs["jobs"].as_array().unwrap().len()),
        (&json!("paused"), 1)
    );

    let output = program("ADMIN_API_KEY", ADMIN_KEY).output().await;
    assert_eq!(code(&output), 0, "{}", errors(&output));
    site.check_answers("out.jsonl", 300);
    site.check_tidy("out.jsonl");
    let repeated: usize = site.asked().values().map(|times| times - 1).sum();
    assert!(repeated <= 8 + 16, "{repeated} were asked again");

    let refused = program("GEMINI_API_KEY", "another-key").output().await;
    assert_eq!(code(&refused), 2, "the output exists");
}

/// A job goes on at a service that cannot be told to pause it.
#[tokio::test]
async fn a_run_whose_job_could_not_be_paused_says_so() {
    let site = Site::new(20).await;
    site.write_prompts("prompts.txt", 300);
    let data = Arc::new(TempDir::new().expect("a folder"));
    let service = site.serve(&data, 0).await;
    let url = service.url("");
    let command = ["run", "prompts.txt", "-o", "out.jsonl", "--url", &url];
    let child = site.program(&command).spawn();
    site.until_answered(60).await;
    service.kill().await;
    kill(&child, "INT").await;
    let output = end(child).await;
    let message = errors(&output);
    assert_eq!(code(&output), 76, "{message}");
    assert!(message.contains("could not be paused, and goes on: "), "{message}");
}

/// The service does not know the caller's key after its restart. The run brings it again.
#[tokio::test]
async fn a_run_with_its_own_key_goes_on_after_a_restart_of_the_service() {
    let site = Site::new(20).await;
    site.write_prompts("prompts.txt", 200);
    let data = Arc::new(TempDir::new().expect("a folder"));
    let service = site.serve(&data, 0).await;
    let (url, port) = (service.url(""), service.address.port());
    let program = site.program(&["run", "prompts.txt", "-o", "out.jsonl", "--url", &url]);
    let child = program.unset("GEMINI_API_KEY").set("GEMINI_API_KEY", "own-key").spawn();
    site.until_answered(50).await;
    service.kill().await;
    let _service = site.serve(&data, port).await;
    let output = end(child).await;
    assert_eq!(code(&output), 0, "{}", errors(&output));
    site.check_answers("out.jsonl", 200);
    assert!(site.simulator.journal().iter().all(|entry| entry.api_key == "own-key"));
}

#[tokio::test]
async fn a_job_that_was_sent_and_not_yet_accepted_is_continued() {
    let site = Site::new(0).await;
    site.write("a.txt", "one");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let url = format!("http://127.0.0.1:{port}");
    let command = ["run", "a.txt", "-o", "out.jsonl", "--url", &url];
    let child = site.program(&command).spawn();
    let (mut connection, _) = listener.accept().await.expect("a connection");
    let mut received = Vec::new();
    while !received.ends_with(b"\r\n0\r\n\r\n") {
        assert_ne!(connection.read_buf(&mut received).await.expect("a request"), 0);
    }
    kill(&child, "INT").await;
    let output = end(child).await;
    let message = errors(&output);
    assert_eq!(code(&output), 76, "{message}");
    assert!(message.contains("may have accepted the job"), "{message}");
    assert!(site.path("out.jsonl.job/run.json").exists());

    let key = |request: &[u8]| {
        let request = String::from_utf8_lossy(request).to_ascii_lowercase();
        let line = request.lines().find(|line| line.starts_with("idempotency-key:"));
        line.expect("a key").to_owned()
    };
    let mut child = site.program(&command).spawn();
    let (mut connection, _) = listener.accept().await.expect("a connection");
    let mut again = Vec::new();
    while !again.ends_with(b"\r\n0\r\n\r\n") {
        assert_ne!(connection.read_buf(&mut again).await.expect("a request"), 0);
    }
    assert_eq!(key(&again), key(&received));
    child.kill().await.expect("it runs");
}

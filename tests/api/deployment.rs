//! The files in `deploy` and `.github` are valid, and match the code.

use std::path::Path;
use std::process::Stdio;

use gemini_concurrent_generation::config::SETTINGS;
use regex::Regex;
use tempfile::TempDir;
use tokio::process::Command;
use tokio::time::timeout;

use crate::manual::{file, text};
use crate::process::PROGRAM;
use crate::support::TEST_TIMEOUT;

/// Where `tests/run` installs the tools.
const TOOLS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/deploy-tools/bin");

/// The version of Kubernetes for which manifests are checked.
const KUBERNETES: &str = "1.33";

/// Runs a tool, and fails if it fails.
async fn run(tool: &str, arguments: &[&str]) {
    let program = format!("{TOOLS}/{tool}");
    assert!(Path::new(&program).exists(), "run tests/run once: it installs {program}");
    let (succeeded, output) = run_program(&program, arguments).await;
    assert!(succeeded, "{tool}: {output}");
}

async fn run_program(program: &str, arguments: &[&str]) -> (bool, String) {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(file("")).stdin(Stdio::null()).kill_on_drop(true);
    let output = timeout(TEST_TIMEOUT, command.output()).await.expect("it did not end in time");
    let output = output.expect("it could not be started");
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), text(&output.stdout) + &text(&output.stderr))
}

/// The names of the files in a folder, relative to the repository root.
fn files(folder: &str) -> Vec<String> {
    let entries = std::fs::read_dir(file(folder)).expect("a folder");
    let names = entries.map(|entry| entry.expect("an entry").file_name().into_string().unwrap());
    names.map(|name| format!("{folder}/{name}")).collect()
}

#[tokio::test]
async fn the_compose_file_is_valid() {
    run("check-jsonschema", &["--builtin-schema", "vendor.compose-spec", "deploy/compose.yaml"])
        .await;
}

#[tokio::test]
async fn the_kubernetes_manifests_are_valid() {
    let manifests = files("deploy/kubernetes").into_iter().filter(|name| {
        // These are read by kustomize and by Helm.
        !name.ends_with("/kustomization.yaml") && !name.ends_with("/prometheus-adapter.yaml")
    });
    let manifests: Vec<_> = manifests.collect();
    assert!(manifests.len() >= 7, "{manifests:?}");
    let mut arguments = vec!["--strict", "-k", KUBERNETES];
    arguments.extend(manifests.iter().map(String::as_str));
    run("kubernetes-validate", &arguments).await;
}

#[tokio::test]
async fn the_workflows_are_valid_and_safe() {
    let workflows = files(".github/workflows");
    let mut arguments = vec!["--builtin-schema", "vendor.github-workflows"];
    arguments.extend(workflows.iter().map(String::as_str));
    run("check-jsonschema", &arguments).await;
    run("zizmor", &["--offline", "--no-progress", ".github/workflows"]).await;
}

#[tokio::test]
async fn the_files_agree_with_each_other_and_with_the_settings() {
    let root = file("");
    let mut arguments = vec!["tests/deploy/check.py", root.to_str().expect("a path")];
    arguments.extend(SETTINGS.iter().map(|setting| setting.name));
    run("python", &arguments).await;
}

#[tokio::test]
async fn the_unit_of_systemd_is_valid_and_hardened() {
    let analyze = "/usr/bin/systemd-analyze";
    if !Path::new(analyze).exists() {
        println!("systemd-analyze is not here");
        return;
    }
    let folder = TempDir::new().expect("a folder");
    let path = folder.path().join("gemini-gateway.service");
    // It would not find the program where it is installed.
    let unit = text("deploy/systemd/gemini-gateway.service")
        .replace("/usr/local/bin/gemini-concurrent-generation", PROGRAM);
    std::fs::write(&path, unit).expect("a file");
    let path = path.to_str().expect("a path");
    let (is_valid, output) = run_program(analyze, &["verify", "--man=no", path]).await;
    let complaints = output.lines().filter(|line| line.contains("gemini-gateway.service"));
    assert_eq!(complaints.collect::<Vec<_>>(), [""; 0], "{output}");
    assert!(is_valid, "{output}");
    // Of 100; what is left is that it uses the network.
    let security = ["security", "--offline=true", "--threshold=20", path];
    let (is_hardened, output) = run_program(analyze, &security).await;
    assert!(is_hardened, "{output}");
}

#[test]
fn the_image_has_the_program_and_the_user_that_the_files_name() {
    let dockerfile = text("Dockerfile");
    let entry_point = Regex::new(r#"ENTRYPOINT \["(.*)"\]"#).unwrap();
    let program = &entry_point.captures(&dockerfile).expect("an entry point")[1];
    assert!(text("deploy/compose.yaml").contains(program));
    assert!(text("deploy/check-image").contains(program));
    // The user `nonroot` of distroless images.
    assert!(dockerfile.contains(":nonroot\n") && dockerfile.contains("VOLUME /data"));
    assert!(text("deploy/kubernetes/deployment.yaml").contains("runAsUser: 65532"));
}

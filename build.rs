//! Tells the tests whether the recorded exchanges are at hand (`cfg(corpus)`): a test that cannot
//! run is then counted as ignored instead of passed.

use std::{env, path::Path};

fn main() {
    println!("cargo::rustc-check-cfg=cfg(corpus)");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=GEMINI_CORPUS");
    let corpus = env::var("GEMINI_CORPUS").unwrap_or("../shared/gemini/corpus".to_owned());
    if Path::new(&corpus).is_dir() {
        println!("cargo::rerun-if-changed={corpus}");
        println!("cargo::rustc-cfg=corpus");
    }
}

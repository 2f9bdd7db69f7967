#![no_main]

use gemini_concurrent_generation_fuzz::jobs;

libfuzzer_sys::fuzz_target!(|input: &[u8]| jobs(input));

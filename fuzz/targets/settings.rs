#![no_main]

use gemini_concurrent_generation_fuzz::settings;

libfuzzer_sys::fuzz_target!(|input: &[u8]| settings(input));

#![no_main]

use gemini_concurrent_generation_fuzz::requests;

libfuzzer_sys::fuzz_target!(|input: &[u8]| requests(input));

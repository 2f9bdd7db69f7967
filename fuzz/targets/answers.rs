#![no_main]

use gemini_concurrent_generation_fuzz::answers;

libfuzzer_sys::fuzz_target!(|input: &[u8]| answers(input));

#![no_main]

use gemini_concurrent_generation_fuzz::schemas;

libfuzzer_sys::fuzz_target!(|input: &[u8]| schemas(input));

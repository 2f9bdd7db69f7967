//! What is asked of Gemini and how the answer is read.

pub mod schema;

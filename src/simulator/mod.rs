//! A stand-in for Gemini.

//! JSON Schema to Gemini's dialect, and the check of an answer against the caller's schema.

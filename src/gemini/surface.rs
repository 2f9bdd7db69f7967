//! The APIs that Gemini offers.

/// The API in whose format a request is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Surface {
    /// Gemini's own.
    Gemini,
    /// Gemini's Interactions, whose errors and usage have a form of their own.
    Interactions,
    /// OpenAI's, which Gemini also offers. The key is sent as a bearer token.
    OpenAi,
}

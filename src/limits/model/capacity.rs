//! The parts of Gemini's capacity.

/// The part of Gemini's capacity that a call uses. Gemini refuses calls for load in each part by
/// itself, so a refusal in one says nothing about the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum Capacity {
    /// What calls of the standard and the priority tier use.
    #[default]
    Standard,
    /// What is to spare, which flex calls use.
    Flex,
}

//! Which blocks a claim takes, and what it has found.

use super::row::unsigned;
use super::{StoreError, payload};
use crate::jobs::model::{self, Block};

/// The most that is claimed at once.
#[derive(Debug, Clone, Copy)]
pub(super) struct Most {
    pub items: u64,
    pub bytes: u64,
}

/// What a claim has found, as it is stored.
#[derive(Debug, Default)]
pub(super) struct Claimed {
    pub blocks: Vec<ClaimedBlock>,
    /// The bytes of the first block, if that alone is larger than what was asked for.
    pub too_large: Option<usize>,
}

/// A block as it is stored.
#[derive(Debug)]
pub(super) struct ClaimedBlock {
    /// What its lines are found by.
    pub key: i64,
    /// The index of its first item.
    pub first: i64,
    pub items: i64,
    /// The size of its lines before they were compressed.
    pub bytes: i64,
    pub compressed: Vec<u8>,
    /// The indices of its items that have a result.
    pub answered: Vec<u64>,
}

/// Takes blocks that nobody holds, in their order, as long as they fit.
#[derive(Debug)]
pub(super) struct Choice {
    most: Most,
    items: u64,
    bytes: u64,
    chosen: Claimed,
}

impl ClaimedBlock {
    pub fn new(key: i64, first: i64, items: i64, bytes: i64) -> Self {
        Self { key, first, items, bytes, compressed: Vec::new(), answered: Vec::new() }
    }
}

impl Choice {
    pub fn new(most: Most) -> Self {
        Self { most, items: 0, bytes: 0, chosen: Claimed::default() }
    }

    /// Takes a block if it fits. Returns whether further ones may.
    pub fn offer(&mut self, block: ClaimedBlock) -> bool {
        self.items = self.items.saturating_add(unsigned(block.items));
        self.bytes = self.bytes.saturating_add(unsigned(block.bytes));
        let Self { most, items, bytes, ref mut chosen } = *self;
        let is_first = chosen.blocks.is_empty();
        if bytes > most.bytes && is_first {
            chosen.too_large = Some(usize::try_from(bytes).unwrap_or(usize::MAX));
        }
        if bytes > most.bytes || (items > most.items && !is_first) {
            return false;
        }
        chosen.blocks.push(block);
        true
    }

    pub fn chosen(self) -> Claimed {
        self.chosen
    }
}

impl Claimed {
    /// The same with the lines of the blocks.
    pub fn read(self) -> Result<model::Claimed, StoreError> {
        let Self { blocks, too_large } = self;
        let blocks = blocks.into_iter().map(|block| {
            let lines = payload::decompress(&block.compressed, block.bytes)?;
            Ok(Block { first: unsigned(block.first), lines, answered: block.answered })
        });
        let blocks = blocks.collect::<Result<_, StoreError>>()?;
        Ok(model::Claimed { blocks, too_large })
    }
}

//! The items of a job that are in memory: from their claim until their results are recorded.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};

use bytes::Bytes;
use tokio::time::Instant;

use super::memory::PER_ITEM;
use crate::jobs::model::{Answered, Block};
use crate::prices::NanoDollars;

/// The items of a job that are in memory. It knows nothing of calls and stores.
#[derive(Debug, Default)]
pub(super) struct Window {
    blocks: BTreeMap<u64, ClaimedBlock>,
    items: HashMap<u64, Item>,
    /// Items to be sent, in this order.
    ready: VecDeque<u64>,
    /// Items to be sent later, by time.
    later: BTreeSet<(Instant, u64)>,
    /// How many of these are to be sent within about a minute.
    soon: usize,
    /// How many items have a result that is to be recorded.
    answered: usize,
    /// The bytes of all blocks.
    bytes: usize,
}

/// A block of which items are in memory.
#[derive(Debug)]
struct ClaimedBlock {
    /// How many of its items are in memory.
    items: usize,
    /// What it takes in memory.
    bytes: usize,
    /// The round of renewals in which it was claimed.
    claimed_in: u64,
    /// Whether the claim was lost. Items that are out may still bring their results.
    is_lost: bool,
}

#[derive(Debug)]
struct Item {
    line: Bytes,
    /// The first index of its block.
    block: u64,
    state: State,
    /// How often it was put off.
    put_off: u32,
    /// How often it failed with a transient error, and what these calls took.
    repeated: u32,
    spent: Spent,
}

/// What those calls of an item took that failed with a transient error.
#[derive(Debug, Clone, Copy, Default)]
struct Spent {
    input_tokens: u64,
    output_tokens: u64,
    cost: NanoDollars,
}

/// Where an item is. Times are in `Window::later`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Ready,
    /// It is being prepared, waits for admission, or is in flight.
    Out,
    Later {
        at: Instant,
        is_soon: bool,
    },
    /// Its result is to be recorded.
    Answered,
}

impl State {
    /// Whether the item is to be sent again within about a minute.
    fn is_soon(self) -> bool {
        matches!(self, Self::Later { is_soon: true, .. })
    }
}

impl Item {
    fn new(line: Bytes, block: u64) -> Self {
        let (state, spent) = (State::Ready, Spent::default());
        Self { line, block, state, put_off: 0, repeated: 0, spent }
    }
}

impl Spent {
    fn add(&mut self, result: &Answered) {
        self.input_tokens = self.input_tokens.saturating_add(result.input_tokens);
        self.output_tokens = self.output_tokens.saturating_add(result.output_tokens);
        self.cost = self.cost.saturating_add(result.cost);
    }
}

impl Window {
    /// Adds claimed blocks. `round` is the current round of renewals.
    pub fn add(&mut self, blocks: Vec<Block>, round: u64) {
        for Block { first, lines, answered } in blocks {
            let bytes = lines.len() + PER_ITEM * memchr::memchr_iter(b'\n', &lines).count();
            let block = self.blocks.entry(first).or_insert_with(|| {
                self.bytes += bytes;
                ClaimedBlock { items: 0, bytes, claimed_in: round, is_lost: false }
            });
            (block.claimed_in, block.is_lost) = (round, false);
            for (index, line) in (first..).zip(split(&lines)) {
                // A block that was lost and claimed again may have items in flight.
                if answered.binary_search(&index).is_ok() || self.items.contains_key(&index) {
                    continue;
                }
                self.items.insert(index, Item::new(line, first));
                self.ready.push_back(index);
                block.items += 1;
            }
            self.remove_block_if_done(first);
        }
    }

    /// The next item to be sent: its index and its line.
    pub fn send_next(&mut self) -> Option<(u64, Bytes)> {
        let index = self.ready.pop_front()?;
        let item = self.items.get_mut(&index)?;
        item.state = State::Out;
        Some((index, item.line.clone()))
    }

    /// The line of an item.
    pub fn line(&self, index: u64) -> Option<Bytes> {
        Some(self.items.get(&index)?.line.clone())
    }

    /// Puts an item off that says nothing about itself yet. `until` gets how often that happened
    /// before; `is_soon` if that is within about a minute. Nothing happens if the item is not here any more.
    pub fn put_off(&mut self, index: u64, is_soon: bool, until: impl FnOnce(u32) -> Instant) {
        self.send_later(index, is_soon, |item| {
            item.put_off += 1;
            until(item.put_off - 1)
        });
    }

    /// Sends an item again after a transient error, of which `result` would be the result. `until` gets the
    /// number of such errors before, and returns when; `None` if there were enough, and then nothing changes.
    /// Returns whether the item is sent again.
    pub fn repeat(
        &mut self,
        index: u64,
        result: &Answered,
        until: impl FnOnce(u32) -> Option<Instant>,
    ) -> bool {
        let Some(at) = self.items.get(&index).and_then(|item| until(item.repeated)) else {
            return false;
        };
        self.send_later(index, true, |item| {
            item.repeated += 1;
            item.spent.add(result);
            at
        });
        true
    }

    fn send_later(&mut self, index: u64, is_soon: bool, until: impl FnOnce(&mut Item) -> Instant) {
        if let Some(item) = self.no_longer_out(index) {
            let at = until(item);
            item.state = State::Later { at, is_soon };
            self.later.insert((at, index));
            self.soon += usize::from(is_soon);
        }
    }

    /// The item was not sent: it is the next one.
    pub fn take_back(&mut self, index: u64) {
        if let Some(item) = self.no_longer_out(index) {
            item.state = State::Ready;
            self.ready.push_front(index);
        }
    }

    /// An item that was out and has no result. One whose claim was lost is dropped.
    fn no_longer_out(&mut self, index: u64) -> Option<&mut Item> {
        let block = self.items.get(&index).filter(|item| item.state == State::Out)?.block;
        if self.blocks.get(&block).is_some_and(|block| block.is_lost) {
            self.items.remove(&index);
            self.forget_item_of(block);
            return None;
        }
        self.items.get_mut(&index)
    }

    /// The same for all items that are out.
    pub fn take_back_all(&mut self) {
        let is_out = |(index, item): (&u64, &Item)| (item.state == State::Out).then_some(*index);
        let mut out: Vec<_> = self.items.iter().filter_map(is_out).collect();
        out.sort_unstable();
        out.into_iter().rev().for_each(|index| self.take_back(index));
    }

    /// Lets the items be sent that were put off until `now`.
    pub fn wake(&mut self, now: Instant) {
        while let Some(&(at, index)) = self.later.first()
            && at <= now
        {
            self.later.pop_first();
            if let Some(item) = self.items.get_mut(&index) {
                let before = std::mem::replace(&mut item.state, State::Ready);
                self.soon -= usize::from(before.is_soon());
                self.ready.push_back(index);
            }
        }
    }

    /// When the next item that was put off is to be sent.
    pub fn wakes_at(&self) -> Option<Instant> {
        self.later.first().map(|&(at, _)| at)
    }

    /// The item has its result. Returns what is to be recorded: the result, with what earlier calls of the item
    /// took. `None` if the item is not here, or has its result already.
    pub fn answered(&mut self, index: u64, result: Answered) -> Option<Answered> {
        let item = self.items.get_mut(&index).filter(|item| item.state == State::Out)?;
        item.state = State::Answered;
        item.line = Bytes::new();
        self.answered += 1;
        item.spent.add(&result);
        let Spent { input_tokens, output_tokens, cost } = item.spent;
        // The index is the one under which the item was claimed, whatever its format says.
        Some(Answered { index, input_tokens, output_tokens, cost, ..result })
    }

    /// The result of the item is recorded.
    pub fn recorded(&mut self, index: u64) {
        if let Some(item) = self.items.remove(&index) {
            self.answered -= usize::from(item.state == State::Answered);
            self.forget_item_of(item.block);
        }
    }

    /// Keeps the items of claims that are still `held`, as a renewal showed that began round `round`.
    /// Items of other blocks are dropped as soon as they are not out, unless they have their result.
    /// Blocks that were claimed in that round or later are not concerned. Returns whether items of lost
    /// claims are out.
    pub fn keep(&mut self, held: &HashSet<u64>, round: u64) -> bool {
        let mut are_out = false;
        for (first, block) in &mut self.blocks {
            block.is_lost |= block.claimed_in < round && !held.contains(first);
        }
        let is_lost = |item: &Item| self.blocks.get(&item.block).is_some_and(|block| block.is_lost);
        let mut dropped = Vec::new();
        for (index, item) in self.items.iter().filter(|(_, item)| is_lost(item)) {
            match item.state {
                State::Ready | State::Later { .. } => dropped.push(*index),
                State::Out => are_out = true,
                State::Answered => {}
            }
        }
        for index in &dropped {
            if let Some(item) = self.items.remove(index) {
                self.soon -= usize::from(item.state.is_soon());
                if let State::Later { at, .. } = item.state {
                    self.later.remove(&(at, *index));
                }
                self.forget_item_of(item.block);
            }
        }
        if !dropped.is_empty() {
            self.ready.retain(|index| self.items.contains_key(index));
        }
        are_out
    }

    /// Those of the `held` claims whose blocks are not here.
    pub fn strangers(&self, held: &HashSet<u64>) -> HashSet<u64> {
        held.iter().filter(|first| !self.blocks.contains_key(first)).copied().collect()
    }

    /// How many items are here.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// How many items are here and were not put off.
    pub fn active(&self) -> usize {
        self.items.len() - self.later.len()
    }

    /// How many items were put off for about a minute or less.
    pub fn soon(&self) -> usize {
        self.soon
    }

    /// How many items are out: they are being prepared, wait for admission, or are in flight.
    pub fn out(&self) -> usize {
        self.items.len() - self.ready.len() - self.later.len() - self.answered
    }

    /// The bytes that the blocks take.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The bytes that these blocks take, as far as they are here.
    pub fn bytes_of(&self, blocks: &HashSet<u64>) -> usize {
        blocks.iter().filter_map(|first| Some(self.blocks.get(first)?.bytes)).sum()
    }

    /// Whether any of these blocks is here.
    pub fn has_any(&self, blocks: &HashSet<u64>) -> bool {
        blocks.iter().any(|first| self.blocks.contains_key(first))
    }

    /// Whether nothing is here.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    fn forget_item_of(&mut self, block: u64) {
        if let Some(claimed) = self.blocks.get_mut(&block) {
            claimed.items -= 1;
        }
        self.remove_block_if_done(block);
    }

    fn remove_block_if_done(&mut self, first: u64) {
        if self.blocks.get(&first).is_some_and(|block| block.items == 0)
            && let Some(block) = self.blocks.remove(&first)
        {
            self.bytes -= block.bytes;
        }
    }
}

/// The lines of a block, without their ends.
fn split(lines: &Bytes) -> impl Iterator<Item = Bytes> {
    let mut begin = 0;
    memchr::memchr_iter(b'\n', lines).map(move |end| {
        let line = lines.slice(begin..end);
        begin = end + 1;
        line
    })
}

#[cfg(test)]
mod tests;

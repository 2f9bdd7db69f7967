//! The search for the number of concurrent calls that Gemini accepts.

/// The most rounds that a plateau lasts before the next trial.
const MAX_WAIT_ROUNDS: usize = 32;
/// About the most successes that a plateau lasts. If a round has many calls, a refused trial costs
/// little, and waiting costs the additional calls that Gemini may accept by now.
const MAX_WAIT_CALLS: usize = 400;

/// The search for the highest limit at which Gemini refuses nothing.
///
/// It proceeds in *rounds*. A round is as many successes as the limit, of calls that started since the
/// limit last changed and ended while it held others back. The highest limit that lasted a round is
/// the *held* limit; a limit above it is a *trial*.
///
/// - A refused trial returns to the held limit, and the next trials halve the distance to the limit
///   that broke. If no limit is left between them, the limit stays on a plateau, and tries again the
///   one that broke: after a round, then after twice as many rounds with each failure.
/// - A trial that holds at a limit that once broke shows that Gemini accepts more now. From there each
///   step is twice the one before, and at most a quarter of the limit.
/// - A refusal at the held limit lowers it by a quarter. Each limit but the first forgives one
///   refusal per as many successes as it allows calls, because Gemini also refuses calls at random.
///   If each of those lowered the limit, at one call in twenty it would sink to a handful, whatever
///   Gemini accepts. Real overload refuses the next call too.
/// - Calls refused together count once: only a call that started after the last fall counts.
///
/// If a refusal takes much longer than an answer, it arrives after its trial has held. The limit then
/// oscillates around what Gemini accepts.
#[derive(Debug)]
pub(in crate::limits) struct Search {
    ceiling: usize,
    limit: usize,
    /// The limit that lasted a round, or to which the limit fell. Never above `limit`.
    held: usize,
    /// The limit of the last refusal that was not forgiven, until a limit as high is held.
    broke_at: Option<usize>,
    /// The size of the next step while no limit is known to break.
    step: usize,
    /// The number of rounds that a plateau lasts.
    wait_rounds: usize,
    /// Full rounds since the last change.
    rounds: usize,
    /// Successes in the current round.
    successes: usize,
    /// Successes since the last change or refusal, whether or not the limit held others back.
    clean: usize,
    /// Whether the held limit forgives the next refusal.
    forgives: bool,
    /// The number of changes of the limit.
    epoch: u64,
    /// The epoch that the last fall began.
    fell: u64,
}

impl Search {
    pub(in crate::limits) fn new(ceiling: usize) -> Self {
        Self {
            ceiling,
            limit: ceiling,
            held: ceiling,
            broke_at: None,
            step: 1,
            wait_rounds: 1,
            rounds: 0,
            successes: 0,
            clean: 0,
            // The ceiling is a guess, so the first refusal lowers it.
            forgives: false,
            epoch: 0,
            fell: 0,
        }
    }

    /// Starts again at the ceiling.
    pub(in crate::limits) fn reset(&mut self) {
        let epoch = self.epoch + 1;
        *self = Self { forgives: true, epoch, fell: epoch, ..Self::new(self.ceiling) };
    }

    /// Changes the ceiling. A search that is at rest follows it, and any other goes on below it.
    pub(in crate::limits) fn set_ceiling(&mut self, ceiling: usize) {
        if ceiling == self.ceiling {
            return;
        }
        let follows = self.at_rest();
        self.ceiling = ceiling;
        if follows {
            return self.reset();
        }
        self.broke_at = self.broke_at.filter(|broke_at| *broke_at <= ceiling);
        self.held = self.held.min(ceiling);
        if self.limit > ceiling {
            self.change(ceiling);
        }
    }

    pub(in crate::limits) fn ceiling(&self) -> usize {
        self.ceiling
    }

    pub(in crate::limits) fn limit(&self) -> usize {
        self.limit
    }

    pub(in crate::limits) fn broke_at(&self) -> Option<usize> {
        self.broke_at
    }

    pub(in crate::limits) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Whether no success can change anything.
    pub(in crate::limits) fn at_rest(&self) -> bool {
        let untouched = self.epoch == 0;
        self.held == self.ceiling && self.broke_at.is_none() && (self.forgives || untouched)
    }

    /// A call that entered in that epoch succeeded. `full`: the limit held others back when it ended.
    pub(in crate::limits) fn succeeded(&mut self, entered: u64, full: bool) {
        if entered != self.epoch {
            return;
        }
        self.clean += 1;
        self.forgives |= self.clean >= self.limit;
        if !full {
            return;
        }
        self.successes += 1;
        if self.successes >= self.limit {
            self.successes = 0;
            self.rounds += 1;
            self.hold();
            self.raise();
        }
    }

    /// A call that entered in that epoch was refused for load.
    pub(in crate::limits) fn overloaded(&mut self, entered: u64) {
        if entered < self.fell {
            return;
        }
        let on_trial = self.limit > self.held;
        if self.forgives && !on_trial {
            self.forgives = false;
            self.successes = 0;
            self.clean = 0;
            return;
        }
        let broke_before = self.broke_at.is_some_and(|broke_at| self.limit >= broke_at);
        self.broke_at = Some(self.limit);
        if !on_trial {
            self.wait_rounds = 1;
            let quarter = (self.limit / 4).max(1);
            self.held = (self.limit - quarter).max(1);
        } else if broke_before {
            self.wait_rounds = (self.wait_rounds * 2).min(MAX_WAIT_ROUNDS);
        }
        self.change(self.held);
        self.fell = self.epoch;
    }

    /// Notes that the limit has lasted a round.
    fn hold(&mut self) {
        if self.limit > self.held {
            self.held = self.limit;
            self.wait_rounds = 1;
        }
        if self.broke_at.is_some_and(|broke_at| self.held >= broke_at) {
            self.broke_at = None;
            self.step = 1;
        }
    }

    /// Starts the next trial if it is due.
    fn raise(&mut self) {
        let next = match self.broke_at {
            None => {
                let step = self.step.min(self.limit / 4).max(1);
                self.step = step * 2;
                self.held + step
            }
            Some(broke_at) if broke_at > self.held + 1 => {
                self.held + (broke_at - 1 - self.held).div_ceil(2)
            }
            Some(_) => {
                let most = MAX_WAIT_CALLS.div_ceil(self.limit);
                if self.rounds < self.wait_rounds.min(most) {
                    return;
                }
                self.held + 1
            }
        };
        let next = next.min(self.ceiling);
        if next > self.limit {
            self.change(next);
        }
    }

    fn change(&mut self, limit: usize) {
        self.limit = limit;
        self.rounds = 0;
        self.successes = 0;
        self.clean = 0;
        self.forgives = true;
        self.epoch += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full_round(search: &mut Search) {
        for _ in 0..search.limit() {
            search.succeeded(search.epoch(), true);
        }
    }

    fn refuse(search: &mut Search) {
        search.overloaded(search.epoch());
    }

    /// A search that has found that 61 is too much and 60 is not.
    fn on_a_plateau() -> Search {
        let mut search = Search::new(100);
        for broken in [100, 75, 75] {
            assert_eq!(search.limit(), broken);
            refuse(&mut search);
        }
        assert_eq!((search.limit(), search.broke_at()), (57, Some(75)));
        while (search.limit(), search.broke_at()) != (60, Some(61)) {
            if search.limit() > 60 {
                refuse(&mut search);
            } else {
                full_round(&mut search);
            }
        }
        full_round(&mut search);
        refuse(&mut search);
        assert_eq!((search.limit(), search.broke_at()), (60, Some(61)));
        search
    }

    #[test]
    fn trials_halve_the_distance_to_what_broke() {
        let mut search = Search::new(80);
        refuse(&mut search);
        let mut limits = vec![search.limit()];
        for _ in 0..6 {
            full_round(&mut search);
            limits.push(search.limit());
        }
        assert_eq!(limits, [60, 70, 75, 77, 78, 79, 80]);
        assert_eq!(search.broke_at(), Some(80), "the trial has not held yet");
        full_round(&mut search);
        assert_eq!((search.limit(), search.broke_at()), (80, None));
        assert!(search.at_rest());
    }

    #[test]
    fn a_refused_trial_steps_straight_back_to_the_held_limit() {
        let mut search = Search::new(80);
        refuse(&mut search);
        full_round(&mut search);
        assert_eq!(search.limit(), 70);
        refuse(&mut search);
        assert_eq!((search.limit(), search.broke_at()), (60, Some(70)));
    }

    #[test]
    fn a_plateau_tries_again_after_twice_as_many_rounds_each_time() {
        let mut search = on_a_plateau();
        let mut waits = Vec::new();
        for _ in 0..4 {
            let mut rounds = 0;
            while search.limit() == 60 {
                full_round(&mut search);
                rounds += 1;
            }
            assert_eq!(search.limit(), 61);
            refuse(&mut search);
            waits.push(rounds);
        }
        assert_eq!(waits, [2, 4, 7, 7], "400 calls are the most");
    }

    #[test]
    fn steps_double_up_to_a_quarter_when_nothing_breaks() {
        let mut search = on_a_plateau();
        let mut limits = Vec::new();
        while !search.at_rest() {
            full_round(&mut search);
            limits.push(search.limit());
        }
        assert_eq!(limits, [60, 61, 62, 64, 68, 76, 92, 100, 100]);
    }

    #[test]
    fn a_limit_forgives_one_refusal_per_as_many_successes_as_it_allows_calls() {
        let mut search = on_a_plateau();
        refuse(&mut search);
        assert_eq!(search.limit(), 60, "it may have been random");
        for _ in 0..60 {
            // Not full: random refusals occur in a quiet service too.
            search.succeeded(search.epoch(), false);
        }
        refuse(&mut search);
        assert_eq!(search.limit(), 60, "it may have been random again");
        refuse(&mut search);
        assert_eq!((search.limit(), search.broke_at()), (45, Some(60)));
    }

    #[test]
    fn a_search_at_rest_follows_its_ceiling() {
        let mut search = Search::new(15);
        for ceiling in [50, 4, 15] {
            search.set_ceiling(ceiling);
            assert_eq!((search.limit(), search.broke_at()), (ceiling, None));
            assert!(search.at_rest());
        }
        let epoch = search.epoch();
        search.set_ceiling(15);
        assert_eq!(search.epoch(), epoch, "nothing has changed");
    }

    #[test]
    fn a_search_below_its_ceiling_goes_on_below_a_new_one() {
        let mut search = on_a_plateau();
        search.set_ceiling(200);
        assert_eq!((search.limit(), search.broke_at()), (60, Some(61)));
        search.set_ceiling(61);
        assert_eq!((search.limit(), search.broke_at()), (60, Some(61)));
        search.set_ceiling(30);
        assert_eq!((search.limit(), search.broke_at()), (30, None));
        assert!(search.at_rest(), "fewer than Gemini accepts");
    }

    #[test]
    fn outcomes_of_calls_from_before_a_change_are_ignored() {
        let mut search = Search::new(80);
        let before = search.epoch();
        refuse(&mut search);
        for _ in 0..1000 {
            search.overloaded(before);
            search.succeeded(before, true);
        }
        assert_eq!(search.limit(), 60);
    }
}

//! The history on a paused clock.

use tokio::time::advance;

use super::account_rings::{AccountRings, STORED_BYTES};
use super::*;
use crate::limits::{
    Limit, LimitScope, Limits, LocalStore, PerKind, QuotaKind, QuotaPlan, QuotaUsage, Reports,
    Source,
};
use crate::metrics::replicas::{Figures, OwnReport};
use crate::metrics::totals::OutcomeClass;
use crate::metrics::{MAX_FAILURES, Sampler};
use crate::pacific::{Calendar, until_midnight};

const SECOND: Duration = Duration::from_secs(1);

/// A history at a time of day, and what it counts.
struct Test {
    history: Arc<History>,
    limiter: Arc<Limiter>,
    totals: Arc<Totals>,
    failures: Arc<Failures>,
}

impl Test {
    /// At most 5 calls in flight; 100 requests a minute and 2 dollars in ten minutes for each key.
    fn at(time: &str) -> Self {
        let mut plan = QuotaPlan::default();
        let limits = Limits::default()
            .with(QuotaKind::RequestsPerMinute, Limit::AtMost(100))
            .with(QuotaKind::SpendPerTenMinutes, Limit::AtMost(2_000_000_000));
        plan.add_limits(LimitScope { label: None, model: None }, limits).unwrap();
        let limiter = Limiter::with_store(LocalStore::new(5), 5, 10, plan);
        let (totals, failures) = (Arc::<Totals>::default(), Arc::<Failures>::default());
        let clock = Calendar { wall: time.parse().unwrap(), instant: Instant::now() };
        let (counted, failed) = (Arc::clone(&totals), Arc::clone(&failures));
        let history = History::new(Arc::clone(&limiter), counted, failed, Arc::new(clock));
        Self { history: Arc::new(history), limiter, totals, failures }
    }

    /// Ends an interval of ten seconds.
    async fn sample(&self) {
        advance(10 * SECOND).await;
        self.history.sample().await;
    }

    fn last(&self, window: Window) -> Arc<Point> {
        Arc::clone(self.history.series(window).points.last().expect("a point"))
    }
}

fn noon() -> Test {
    Test::at("2026-11-30T20:00:00Z")
}

#[tokio::test(start_paused = true)]
async fn a_point_has_what_was_counted_in_its_interval_and_a_minute_sums_six() {
    let test = noon();
    for second in 1..=7 {
        test.totals.finished(OutcomeClass::Succeeded, second * SECOND, 10, 3);
        test.totals.charged(NanoDollars(5));
        test.sample().await;
    }
    let Series { points, scope, .. } = test.history.series(Window::Hour);
    assert_eq!((points.len(), scope), (7, Scope::Alone));
    for (second, point) in (1..).zip(&points) {
        let Counts { calls, input_tokens, output_tokens, cost, latency, .. } = &point.counts;
        assert_eq!((calls.of(OutcomeClass::Succeeded), calls.total()), (1, 1));
        assert_eq!((*input_tokens, *output_tokens, *cost), (10, 3, NanoDollars(5)));
        let median = latency.quantile(0.5).expect("a call was counted").as_secs_f64();
        assert!((median / f64::from(second) - 1.0).abs() < 0.2, "{median}");
        assert_eq!((point.duration, point.limit), (10 * SECOND, 5));
    }
    let minutes = test.history.series(Window::Day).points;
    assert_eq!(minutes.len(), 1);
    let minute = &minutes[0];
    assert_eq!((minute.at, minute.duration), (points[5].at, 60 * SECOND));
    assert_eq!((minute.counts.calls.total(), minute.counts.latency.count()), (6, 6));
}

#[tokio::test(start_paused = true)]
async fn calls_in_flight_are_averaged_over_the_interval() {
    let test = noon();
    let global = test.limiter.store().global();
    let sampler = Sampler::start(&test.history);
    tokio::time::sleep(5 * SECOND + SECOND / 2).await;
    let permits = Arc::clone(&global).request(4, crate::limits::WaitMode::Endless).await.unwrap();
    assert_eq!(test.history.now().in_flight, 4);
    tokio::time::sleep(5 * SECOND).await;
    let point = test.last(Window::Hour);
    assert!((1.5..=2.5).contains(&point.in_flight), "half of the time 4: {}", point.in_flight);
    drop(permits);
    tokio::time::sleep(20 * SECOND).await;
    assert_eq!(test.last(Window::Hour).in_flight, 0.0);
    drop(sampler);
    tokio::time::sleep(60 * SECOND).await;
    assert_eq!(test.history.series(Window::Hour).points.len(), 3, "dropping it ends the sampling");
}

#[tokio::test(start_paused = true)]
async fn the_windows_and_their_memory_are_bounded() {
    let test = noon();
    for _ in 0..9000 {
        test.sample().await;
    }
    for window in Window::ALL {
        let points = test.history.series(window).points;
        assert_eq!(points.len(), window.points());
        let newest = points.last().unwrap().at;
        assert!(newest.duration_since(points[0].at) < window.length().try_into().unwrap());
    }
    for number in 0..2 * MAX_FAILURES {
        test.failures.note(failure(&number.to_string(), test.history.identity.since));
    }
    assert_eq!(test.history.failures(usize::MAX).len(), MAX_FAILURES);

    // Own points and those of all replicas; an Arc has two counters, and each ring a pointer.
    let points: usize = Window::ALL.map(Window::points).iter().sum();
    let of_points = 2 * points * (size_of::<Point>() + 3 * size_of::<usize>());
    let of_accounts = MAX_ACCOUNTS * points * STORED_BYTES;
    assert!(of_points <= 3_400_000, "{of_points}");
    assert!(of_points + of_accounts <= 14_000_000, "{of_accounts}");
}

fn failure(code: &str, at: Timestamp) -> Failure {
    let text = Arc::from("x");
    let [kind, model, payer] = [(); 3].map(|()| Arc::clone(&text));
    Failure {
        at,
        code: code.into(),
        kind,
        model,
        payer,
        request_id: None,
        retried: false,
        count: 1,
    }
}

#[tokio::test(start_paused = true)]
async fn spend_is_that_of_ten_minutes_and_of_googles_day() {
    // An hour before midnight in California.
    let test = Test::at("2026-12-01T07:00:00Z");
    let spent = || {
        let Spent { ten_minutes, today, .. } = test.history.spent();
        (ten_minutes.0, today.0)
    };
    test.totals.charged(NanoDollars(3));
    test.sample().await;
    assert_eq!(spent(), (3, 3));
    advance(600 * SECOND).await;
    assert_eq!(spent(), (0, 3));
    advance(2970 * SECOND).await;
    test.totals.charged(NanoDollars(4));
    test.sample().await;
    assert_eq!(spent(), (4, 7), "it is still the same day");
    advance(10 * SECOND).await;
    assert_eq!(spent(), (4, 0), "a new day began");
    assert_eq!(test.history.spent().today_since, "2026-12-01T08:00:00Z".parse().unwrap());
    test.totals.charged(NanoDollars(5));
    test.sample().await;
    assert_eq!(spent(), (9, 5));
}

#[test]
fn spend_of_a_day_is_shown_again_after_the_clock_was_set_to_another_year_and_back() {
    let at = |text: &str| text.parse::<Timestamp>().unwrap();
    let (now, instant) = (at("2026-11-30T20:00:00Z"), Instant::now());
    let mut state = State::new(instant, now, false);
    let mut spend = |now: Timestamp, cost| {
        let counts = Counts { cost: NanoDollars(cost), ..Counts::default() };
        state.end_interval(instant, now, counts, 5);
        let Spent { ten_minutes, today, today_since } = state.spent(now);
        (ten_minutes.0, today.0, today_since)
    };
    assert_eq!(spend(now, 3), (3, 3, now));
    assert_eq!(spend(now - SECOND, 4), (1, 4, now), "a second earlier is the same day");
    let later = at("2036-11-30T20:00:00Z");
    assert_eq!(spend(later, 5), (1, 1, at("2036-11-30T08:00:00Z")), "the day of then");
    let again = now + 60 * SECOND;
    assert_eq!(spend(again, 7), (3 + 1 + 2, 2, again), "what is in the future does not count");
    let tomorrow = now + 86_400 * SECOND;
    assert_eq!(spend(tomorrow, 10), (3, 3, at("2026-12-01T08:00:00Z")));
}

#[tokio::test(start_paused = true)]
async fn accounts_that_gemini_accepted_are_shown_with_their_quotas_and_pauses() {
    let test = noon();
    let accounts = test.limiter.accounts();
    let [proven, _unproven] = [1, 2].map(|key| accounts.of(&[key; 32], &"m".into()));
    proven.correct(PerKind::default().with(QuotaKind::RequestsPerMinute, 50));
    test.sample().await;
    let states = test.history.accounts();
    assert_eq!(states.len(), 1, "{states:?}");
    let [state] = &states[..] else { unreachable!() };
    assert_eq!((&*state.payer, &*state.model), ("01010101", "m"));
    assert_eq!(state.quotas[QuotaKind::RequestsPerMinute].limit, Some(50));
    assert_eq!(state.sources[QuotaKind::RequestsPerMinute], Some(Source::Gemini));
    assert_eq!((state.paused, state.concurrency.limit), (None, 5));
    let payers = test.history.payers();
    assert_eq!(payers.len(), 2, "both may spend: {payers:?}");
    assert_eq!(payers[0].spend.limit, Some(2_000_000_000));

    let quota = Some(QuotaKind::RequestsPerMinute);
    proven.budget().pause_until(Instant::now() + 25 * SECOND, quota);
    test.sample().await;
    let paused = test.history.accounts()[0].paused.expect("it is paused");
    let at = test.last(Window::Hour).at;
    assert_eq!(
        paused,
        Paused { until: Some(at + 15 * SECOND), reason: PauseReason::Refused(quota) }
    );
    proven.budget().close_day(Instant::now());
    test.sample().await;
    let paused = test.history.accounts()[0].paused.expect("it is paused");
    assert_eq!(paused.reason, PauseReason::DayUsedUp);
    // The budget's clock is the machine's.
    let left = paused.until.expect("it ends").duration_since(test.last(Window::Hour).at);
    let expected = until_midnight(Timestamp::now()).as_secs_f64();
    assert!((left.as_secs_f64() - expected).abs() < 60.0, "{left:?}, not {expected} s");

    let series = test.history.account("01010101", "m", Window::Hour).expect("it is known");
    let points: Vec<_> = series.points.iter().map(|point| point.paused).collect();
    assert_eq!(points, [false, true, true]);
    let limits = series.points[0].limits;
    assert_eq!(limits[QuotaKind::RequestsPerMinute], Some(50.0));
    assert_eq!(limits[QuotaKind::InputTokensPerMinute], None);
    assert!(test.history.account("02020202", "m", Window::Hour).is_none());
}

fn account(payer: &str, limit: Option<u64>, used: u64, at: Timestamp) -> AccountState {
    let usage = QuotaUsage { limit, used, reserved: 0 };
    let concurrency = Concurrency { limit: 3, ceiling: 5, in_use: 1, ..Concurrency::default() };
    AccountState {
        payer: payer.into(),
        model: "m".into(),
        aliases: Vec::new(),
        at,
        quotas: PerKind::from_fn(|_| usage),
        sources: PerKind::default(),
        waiting: 0,
        next_slot_at: None,
        paused: None,
        concurrency,
        flex_concurrency: concurrency,
    }
}

#[test]
fn the_past_of_too_many_accounts_is_dropped_oldest_first() {
    let (mut rings, start) = (AccountRings::default(), Timestamp::UNIX_EPOCH);
    for number in 0..2 * MAX_ACCOUNTS {
        let at = start + SECOND * number as u32;
        rings.push(&[account(&number.to_string(), Some(1), 0, at)], at, 10 * SECOND);
    }
    let is_known = |number: usize| rings.series(&number.to_string(), "m", Window::Hour).is_some();
    assert!((0..MAX_ACCOUNTS).all(|number| !is_known(number)));
    assert!((MAX_ACCOUNTS..2 * MAX_ACCOUNTS).all(is_known));
    let later = start + Duration::from_secs(100_000);
    rings.push(&[account("new", Some(1), 0, later)], later, 10 * SECOND);
    assert!(rings.series("99", "m", Window::Day).is_none(), "a day is over");
}

/// Another replica, as it reports itself.
struct Other {
    identity: Identity,
    number: u64,
    counts: Counts,
    accounts: Vec<AccountState>,
}

impl Other {
    fn new(id: &str, since: Timestamp) -> Self {
        let (host, version) = ("host".into(), "0.0.1".into());
        let identity = Identity { id: id.into(), host, version, since };
        Self { identity, number: 0, counts: Counts::default(), accounts: Vec::new() }
    }

    /// A report of 2 calls in flight, 3 waiting requests, and another call that succeeded.
    fn report(&mut self) -> String {
        self.number += 1;
        let one = Totals::default();
        one.finished(OutcomeClass::Succeeded, SECOND, 1, 1);
        one.charged(NanoDollars(7));
        self.counts.add(&one.read());
        let figures = Figures {
            in_flight: 2.0,
            waiting: 3.0,
            counts: self.counts.clone(),
            accounts: self.accounts.clone(),
            failures: vec![failure("of_the_other", self.identity.since)],
        };
        let (identity, number) = (&self.identity, self.number);
        OwnReport { identity, number, in_flight: 2, waiting: 3, figures }.text()
    }
}

/// The state of a replica with shared limits, and its last point.
struct Replicated {
    state: State,
    identity: Identity,
    now: Timestamp,
    instant: Instant,
}

impl Replicated {
    fn new() -> Self {
        let (now, instant) = ("2026-11-30T20:00:00Z".parse().unwrap(), Instant::now());
        let identity = Other::new("this", now).identity;
        Self { state: State::new(instant, now, true), identity, now, instant }
    }

    /// Ends an interval of ten seconds in which these reports came; `None`: Redis does not answer.
    fn sample(&mut self, texts: Option<Vec<String>>) -> Series {
        (self.now, self.instant) = (self.now + 10 * SECOND, self.instant + 10 * SECOND);
        let point = self.state.end_interval(self.instant, self.now, Counts::default(), 5);
        let reports = texts.map(|texts| Reports { texts, is_first: true });
        self.state.take_reports(reports, &self.identity, &point, self.now);
        let (window, scope) = (Window::Hour, self.state.scope());
        Series { window, scope, points: self.state.shown().points(window) }
    }
}

#[tokio::test(start_paused = true)]
async fn the_figures_of_all_replicas_are_summed() {
    let mut this = Replicated::new();
    let (mut new, mut old) =
        (Other::new("new", this.now), Other::new("old", this.now - 600 * SECOND));
    (0..100).for_each(|_| drop(old.report()));
    old.accounts = vec![account("server", Some(9), 4, this.now)];
    let last = |series: &Series| {
        let point = series.points.last().expect("a point");
        (point.in_flight, point.waiting, point.counts.calls.total(), point.counts.cost.0)
    };
    this.sample(Some(vec![old.report()]));
    let series = this.sample(Some(vec![new.report(), old.report()]));
    assert_eq!(series.scope, Scope::Replicas { count: 3 });
    assert_eq!(last(&series), (4.0, 6.0, 2, 14), "what the old one counted before is in the past");
    let series = this.sample(Some(vec![new.report(), old.report()]));
    assert_eq!(last(&series), (4.0, 6.0, 2, 14));
    assert_eq!(this.state.peers.occupancy(), (4, 6));
    let replicas = this.state.peers.replicas();
    assert_eq!(replicas.iter().map(|replica| &*replica.id).collect::<Vec<_>>(), ["old", "new"]);
    let merged =
        accounts::merge(&[account("server", Some(9), 5, this.now)], this.state.peers.accounts());
    assert_eq!(merged.len(), 1);
    assert_eq!(merged[0].quotas[QuotaKind::RequestsPerDay].used, 5, "counted once, in Redis");
    assert_eq!((merged[0].concurrency.limit, merged[0].concurrency.in_use), (6, 2));

    // Two replicas end. A report that comes twice counts once.
    let again = old.report();
    assert_eq!(last(&this.sample(Some(vec![again.clone()]))), (2.0, 3.0, 1, 7));
    let seen = this.now;
    let series = this.sample(Some(vec![again.clone(), again]));
    assert_eq!((series.scope, last(&series)), (Scope::Replicas { count: 2 }, (2.0, 3.0, 0, 0)));
    assert_eq!(this.state.peers.replicas()[0].last_seen, seen);
    assert_eq!(this.sample(Some(Vec::new())).scope, Scope::Replicas { count: 1 });
    assert_eq!(this.state.spent(this.now).today, NanoDollars(35));
}

#[tokio::test(start_paused = true)]
async fn without_redis_only_the_own_figures_are_shown() {
    let mut this = Replicated::new();
    let mut other = Other::new("other", this.now);
    this.sample(Some(vec![other.report()]));
    let series = this.sample(None);
    assert_eq!(series.scope, Scope::Unreachable { since: this.now });
    assert_eq!(series.points.iter().map(|point| point.in_flight).collect::<Vec<_>>(), [0.0, 0.0]);
    assert!(this.state.peers.replicas().is_empty());
    assert_eq!(this.state.spent(this.now).today, NanoDollars(0));
    let since = this.now;
    assert_eq!(this.sample(None).scope, Scope::Unreachable { since });
    let series = this.sample(Some(vec![other.report()]));
    assert_eq!(series.scope, Scope::Replicas { count: 2 });
    let in_flight: Vec<_> = series.points.iter().map(|point| point.in_flight).collect();
    assert_eq!(in_flight, [2.0, 0.0, 0.0, 2.0]);
}

#[tokio::test(start_paused = true)]
async fn hostile_reports_are_bounded() {
    let mut this = Replicated::new();
    let huge = u64::MAX;
    let text = |id: &str, figures: &str| {
        format!(
            r#"{{"identity":{{"id":"{id}","host":"{}","version":"1","since":"9999-12-30T00:00:00Z"}},
            "number":1,"in_flight":{huge},"waiting":{huge},"figures":{figures}}}"#,
            "h".repeat(5000)
        )
    };
    let calls = format!(r#"[{}]"#, vec![huge.to_string(); 50].join(","));
    let figures = format!(
        r#"{{"in_flight":1e300,"waiting":-5,"counts":{{"calls":{calls},"retries":{huge},
        "input_tokens":{huge},"output_tokens":{huge},"cost":{huge},"queue_wait":[[9999,1]],
        "latency":[[3,4294967295]]}},"accounts":[],"failures":[]}}"#
    );
    this.sample(Some(Vec::new()));
    let texts = vec![
        text("one", &figures),
        text("two", &figures),
        text("three", "[1]"),
        "nonsense".into(),
        format!("{}1{}", "[".repeat(5000), "]".repeat(5000)),
    ];
    let series = this.sample(Some(texts));
    assert_eq!(series.scope, Scope::Replicas { count: 4 }, "also one with unreadable figures");
    let point = series.points.last().unwrap();
    assert_eq!((point.in_flight, point.waiting), (2e9, 0.0));
    assert_eq!(point.counts.cost, NanoDollars(huge));
    assert!(
        this.state
            .peers
            .replicas()
            .iter()
            .all(|replica| { replica.host.len() <= 256 && replica.since <= this.now })
    );
    assert_eq!(this.state.peers.occupancy().0, usize::MAX);
}

#[tokio::test(start_paused = true)]
async fn a_report_is_never_too_long() {
    let now = "2026-11-30T20:00:00Z".parse().unwrap();
    let mut other = Other::new("other", now);
    let long = "l".repeat(250);
    other.accounts = (0..MAX_ACCOUNTS)
        .map(|n| account(&format!("{long}{n}"), Some(u64::MAX), u64::MAX, now))
        .collect();
    let text = other.report();
    assert!(text.len() <= 65_536 && text.contains(&long), "{}", text.len());
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_starts_later_shows_the_past_of_the_others() {
    let mut first = Replicated::new();
    let mut other = Other::new("other", first.now);
    first.state.fill(&[], first.now);
    first.sample(Some(Vec::new()));
    first.state.unsent.clear();
    let mut kept: Vec<(Window, Vec<String>)> =
        Window::ALL.map(|window| (window, Vec::new())).into();
    for _ in 0..13 {
        first.sample(Some(vec![other.report()]));
        let mut unsent = std::mem::take(&mut first.state.unsent);
        for (window, texts) in &mut kept {
            texts.extend(unsent.remove(window.key()));
        }
    }
    assert_eq!(kept.iter().map(|(_, texts)| texts.len()).collect::<Vec<_>>(), [13, 2]);
    kept[0].1.insert(5, "nonsense".into());

    let mut second = Replicated::new();
    (second.now, second.instant) = (first.now + SECOND, first.instant + SECOND);
    second.state = State::new(second.instant, second.now, true);
    let series = second.sample(Some(vec![other.report()]));
    assert_eq!(series.points.len(), 1);
    second.state.fill(&kept, second.now);
    for window in Window::ALL {
        let points = second.state.shown().points(window);
        assert!(points.is_sorted_by(|a, b| a.at < b.at));
        let calls: u64 = points.iter().map(|point| point.counts.calls.total()).sum();
        // The first minute began before the other replica.
        assert_eq!(calls, if window == Window::Hour { 13 } else { 11 });
    }
    assert_eq!(second.state.spent(second.now).today, NanoDollars(13 * 7));
}

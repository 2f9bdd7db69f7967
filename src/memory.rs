//! The memory budget that the bodies of all requests share.

use std::fs::read_to_string;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::process::{Resource, getrlimit};

/// The largest share, in bytes, that may use the last eighth of the budget: a few large bodies do not
/// keep small ones out.
const SMALL: usize = 64 * 1024;

/// The least memory for large items of jobs, in bytes.
const LEAST_FOR_LARGE_ITEMS: usize = 32 << 20;

/// The assumed memory if the system does not report it, in bytes.
const ASSUMED: u64 = 1 << 30;

/// A budget for the memory of all requests' bodies.
#[derive(Debug)]
pub struct BodyBudget {
    total: usize,
    used: AtomicUsize,
}

/// A request's share of the budget. Dropping it returns the bytes.
#[derive(Debug, Default)]
pub struct Share {
    budget: Option<Arc<BodyBudget>>,
    bytes: usize,
}

/// The budget is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the bodies of other requests use up the memory for bodies")]
pub struct OverBudget;

impl BodyBudget {
    /// A budget of `total` bytes, or of a quarter of the memory that the process may use.
    pub fn new(total: Option<usize>) -> Arc<Self> {
        let quarter = || usize::try_from(available() / 4).unwrap_or(usize::MAX);
        Arc::new(Self { total: total.unwrap_or_else(quarter), used: AtomicUsize::new(0) })
    }

    /// The largest possible share, in bytes.
    pub fn largest(&self) -> usize {
        self.total - self.total / 8
    }

    /// How many bytes large items of jobs may take beside the bodies: a quarter as much, but no less than
    /// 32 MiB.
    pub fn for_large_items(&self) -> usize {
        (self.total / 4).max(LEAST_FOR_LARGE_ITEMS)
    }

    /// The bytes in use.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// An empty share, which can grow.
    pub fn share(self: &Arc<Self>) -> Share {
        Share { budget: Some(Arc::clone(self)), bytes: 0 }
    }
}

impl Share {
    /// Adds bytes to the share. It never waits: requests that wait for each other's shares would
    /// deadlock.
    ///
    /// # Errors
    /// [`OverBudget`] if the bytes are not available. The share then stays as it was.
    pub fn grow(&mut self, bytes: usize) -> Result<(), OverBudget> {
        let Some(budget) = &self.budget else { return Err(OverBudget) };
        let own = self.bytes.saturating_add(bytes);
        let most = if own <= SMALL { budget.total } else { budget.largest() };
        let grown = |used: usize| used.checked_add(bytes).filter(|used| *used <= most);
        let order = Ordering::Relaxed;
        budget.used.fetch_update(order, order, grown).map_err(|_| OverBudget)?;
        self.bytes = own;
        Ok(())
    }

    /// Returns bytes of the share, or all that it has if that is less.
    pub fn shrink(&mut self, bytes: usize) {
        let Some(budget) = &self.budget else { return };
        let bytes = bytes.min(self.bytes);
        budget.used.fetch_sub(bytes, Ordering::Relaxed);
        self.bytes -= bytes;
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        if let Some(budget) = &self.budget {
            budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
        }
    }
}

/// The memory that the process may use, in bytes: the lowest of the machine's memory, the limits of the
/// process's control groups, and its resource limits.
pub fn available() -> u64 {
    let groups = read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limits = [
        machine(&read_to_string("/proc/meminfo").unwrap_or_default()),
        control_groups(Path::new("/sys/fs/cgroup"), &groups),
        getrlimit(Resource::As).current,
        getrlimit(Resource::Data).current,
    ];
    limits.into_iter().flatten().min().unwrap_or(ASSUMED)
}

/// The memory of the machine according to `/proc/meminfo`.
fn machine(meminfo: &str) -> Option<u64> {
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = total.split_whitespace().next()?.parse().ok()?;
    kib.checked_mul(1024)
}

/// The lowest limit of the control groups of a process, from `/proc/self/cgroup`: `0::/path` for version
/// 2, `4:memory:/path` for version 1. Inside a container, the path may be the one outside of it; the
/// container's own group is then the root.
fn control_groups(root: &Path, groups: &str) -> Option<u64> {
    let limits = groups.lines().flat_map(|group| {
        let mut fields = group.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next().unwrap_or(""), fields.next().unwrap_or(""));
        let (root, file) = match controllers {
            "" => (root.to_owned(), "memory.max"),
            _ => (root.join("memory"), "memory.limit_in_bytes"),
        };
        let applies = controllers.is_empty() || controllers.split(',').any(|name| name == "memory");
        let path = root.join(path.trim_start_matches('/'));
        let groups = path.ancestors().filter(|group| applies && group.starts_with(&root));
        groups.filter_map(|group| limit(&group.join(file))).collect::<Vec<_>>()
    });
    limits.min()
}

/// The number in a file; `None` for `max`, which means no limit.
fn limit(file: &Path) -> Option<u64> {
    read_to_string(file).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_share_grows_within_the_budget_and_is_returned_when_dropped() {
        let budget = BodyBudget::new(Some(8_000_000));
        let mut first = budget.share();
        first.grow(4_000_000).unwrap();
        let mut second = budget.share();
        assert_eq!(second.grow(3_000_001), Err(OverBudget), "an eighth is for small bodies");
        second.grow(3_000_000).unwrap();
        assert_eq!(budget.used(), 7_000_000);
        assert_eq!(second.grow(usize::MAX), Err(OverBudget));

        let mut small = budget.share();
        small.grow(SMALL).unwrap();
        assert_eq!(small.grow(1), Err(OverBudget), "it is no longer small");
        drop((first, small));
        assert_eq!(budget.used(), 3_000_000);
        second.shrink(1_000_000);
        assert_eq!(budget.used(), 2_000_000);
        second.shrink(usize::MAX);
        assert_eq!(budget.used(), 0, "no more than it has");
        drop(second);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn a_small_share_never_exceeds_the_whole_budget() {
        let budget = BodyBudget::new(Some(100));
        let mut share = budget.share();
        share.grow(100).unwrap();
        assert_eq!(budget.share().grow(1), Err(OverBudget));
    }

    #[test]
    fn the_memory_of_the_machine_is_read() {
        assert_eq!(machine("MemTotal:       16384256 kB\nMemFree: 1 kB\n"), Some(16_777_478_144));
        assert_eq!(machine(""), None);
    }

    #[test]
    fn the_lowest_limit_of_all_control_groups_counts() {
        let folder = tempfile::TempDir::new().unwrap();
        let write = |path: &str, text: &str| {
            let file = folder.path().join(path);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        };
        let limit = |groups| control_groups(folder.path(), groups);
        assert_eq!(limit("0::/\n"), None);
        write("system/memory.max", "3000\n");
        write("system/service/memory.max", "max\n");
        assert_eq!(limit("0::/system/service\n"), Some(3000), "limits of parent groups apply too");
        write("memory.max", "2000\n");
        assert_eq!(limit("0::/of/the/host\n"), Some(2000), "within a container");
        write("memory/docker/memory.limit_in_bytes", "1000\n");
        write("memory/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(limit("5:cpu,cpuacct:/docker\n4:memory:/docker\n"), Some(1000));
        assert_eq!(limit(""), None);
    }

    #[test]
    fn some_memory_is_available() {
        assert!(available() > 1 << 20);
    }
}

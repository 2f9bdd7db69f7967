//! Slows attempts to guess the admin key.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How many attempts a client has at once, and how soon it has another one.
const OF_CLIENT: Allowance = Allowance { burst: 5, interval: Duration::from_secs(15) };

/// The same for all clients together.
const OF_ALL: Allowance = Allowance { burst: 60, interval: Duration::from_secs(1) };

/// How many clients are told apart. Further ones share an allowance.
const MAX_CLIENTS: usize = 4096;

/// The client that stands for all beyond the bound.
const OTHERS: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

/// Counts attempts to log in.
#[derive(Debug, Default)]
pub(super) struct Throttle(Mutex<Attempts>);

#[derive(Debug, Default)]
struct Attempts {
    all: Bucket,
    clients: HashMap<IpAddr, Bucket>,
}

#[derive(Debug, Clone, Copy)]
struct Allowance {
    burst: u32,
    interval: Duration,
}

/// When all attempts so far are made up for; `None` before the first one.
#[derive(Debug, Default, Clone, Copy)]
struct Bucket(Option<Instant>);

impl Throttle {
    /// Counts an attempt, before its key is compared.
    ///
    /// # Errors
    /// The time after which another attempt is allowed.
    pub fn attempt(&self, client: IpAddr) -> Result<(), Duration> {
        let now = Instant::now();
        let mut attempts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Attempts { all, clients } = &mut *attempts;
        let client = network(client);
        if !clients.contains_key(&client) && clients.len() >= MAX_CLIENTS {
            clients.retain(|_, bucket| !bucket.is_empty(now));
        }
        let has_room = clients.contains_key(&client) || clients.len() < MAX_CLIENTS;
        let own = clients.entry(if has_room { client } else { OTHERS }).or_default();
        own.wait(OF_CLIENT, now)?;
        all.wait(OF_ALL, now)?;
        own.take(OF_CLIENT, now);
        all.take(OF_ALL, now);
        Ok(())
    }

    /// Takes back an attempt that had the right key.
    pub fn succeeded(&self, client: IpAddr) {
        let mut attempts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        attempts.all.give_back(OF_ALL);
        attempts.clients.remove(&network(client));
    }
}

/// The network that an address stands for. Of IPv6 one client has 2^64 addresses.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        address @ IpAddr::V4(_) => address,
    }
}

impl Bucket {
    fn wait(self, allowance: Allowance, now: Instant) -> Result<(), Duration> {
        let Some(full_at) = self.0 else { return Ok(()) };
        let most = allowance.interval * (allowance.burst - 1);
        let wait = full_at.saturating_duration_since(now).saturating_sub(most);
        if wait.is_zero() { Ok(()) } else { Err(wait) }
    }

    fn take(&mut self, allowance: Allowance, now: Instant) {
        self.0 = Some(self.0.map_or(now, |full_at| full_at.max(now)) + allowance.interval);
    }

    fn give_back(&mut self, allowance: Allowance) {
        self.0 = self.0.and_then(|full_at| full_at.checked_sub(allowance.interval));
    }

    fn is_empty(self, now: Instant) -> bool {
        self.0.is_none_or(|full_at| full_at <= now)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::time::advance;

    use super::*;

    fn client(number: u32) -> IpAddr {
        Ipv4Addr::from_bits(number).into()
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_is_slowed_after_some_attempts() {
        let throttle = Throttle::default();
        for _ in 0..OF_CLIENT.burst {
            throttle.attempt(client(1)).unwrap();
        }
        assert_eq!(throttle.attempt(client(1)), Err(OF_CLIENT.interval));
        throttle.attempt(client(2)).unwrap();
        advance(OF_CLIENT.interval).await;
        throttle.attempt(client(1)).unwrap();
        assert_eq!(throttle.attempt(client(1)), Err(OF_CLIENT.interval));
        throttle.succeeded(client(1));
        throttle.attempt(client(1)).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn all_clients_together_are_slowed() {
        let throttle = Throttle::default();
        for number in 0..OF_ALL.burst {
            throttle.attempt(client(number)).unwrap();
        }
        assert_eq!(throttle.attempt(client(1000)), Err(OF_ALL.interval));
        advance(OF_ALL.interval).await;
        throttle.attempt(client(1000)).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn the_addresses_of_one_network_are_one_client() {
        let throttle = Throttle::default();
        for number in 0..OF_CLIENT.burst {
            let address: IpAddr = format!("2001:db8:1:2::{number}").parse().unwrap();
            throttle.attempt(address).unwrap();
        }
        assert!(throttle.attempt("2001:db8:1:2:f::1".parse().unwrap()).is_err());
        throttle.attempt("2001:db8:1:3::1".parse().unwrap()).unwrap();
        assert_eq!(network("::ffff:10.0.0.1".parse().unwrap()), client(0x0a00_0001));
    }

    #[tokio::test(start_paused = true)]
    async fn the_number_of_clients_in_memory_is_bounded() {
        let throttle = Throttle::default();
        for number in 0..2 * MAX_CLIENTS as u32 {
            let _ = throttle.attempt(client(number));
        }
        assert!(throttle.0.lock().unwrap().clients.len() <= MAX_CLIENTS + 1);
    }
}

//! The sessions of operators. A session begins with the admin key and is known by a random token, of
//! which only the hash is kept.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use rustls::crypto::ring::default_provider;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// After how much time without a request a session ends.
const IDLE: Duration = Duration::from_secs(60 * 60);

/// After how much time a session ends in any case.
const LONGEST: Duration = Duration::from_secs(12 * 60 * 60);

/// How many sessions are kept. A new one then replaces the one that was used least recently.
const MAX_SESSIONS: usize = 256;

/// The sessions of this process. None survives it.
#[derive(Debug, Default)]
pub(super) struct Sessions(Mutex<HashMap<SessionId, Open>>);

/// The SHA-256 of a token.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct SessionId([u8; 32]);

#[derive(Debug)]
struct Open {
    began: Instant,
    used: Instant,
    /// Cancelled when it ends.
    ends: CancellationToken,
}

/// The token of a session: 256 random bits, which only the browser keeps.
#[derive(Clone)]
pub(super) struct Token([u8; 32]);

/// An open session.
#[derive(Debug, Clone)]
pub(super) struct Session {
    id: SessionId,
    /// What forms of this session carry, so that no other page can send them.
    csrf: String,
    ends: CancellationToken,
}

impl Sessions {
    /// Begins a session.
    pub fn begin(&self) -> Token {
        let token = Token::random();
        let now = Instant::now();
        let mut open = self.open();
        open.retain(|_, session| session.is_open(now));
        if open.len() >= MAX_SESSIONS
            && let Some(oldest) = open.iter().min_by_key(|(_, session)| session.used)
        {
            let oldest = *oldest.0;
            open.remove(&oldest);
        }
        let session = Open { began: now, used: now, ends: CancellationToken::new() };
        open.insert(token.id(), session);
        token
    }

    /// The open session of a token. This counts as a use.
    pub fn find(&self, token: &Token) -> Option<Session> {
        let (id, now) = (token.id(), Instant::now());
        let mut open = self.open();
        let session = open.get_mut(&id).filter(|session| session.is_open(now));
        let Some(session) = session else {
            open.remove(&id);
            return None;
        };
        session.used = now;
        Some(Session { id, csrf: token.csrf(), ends: session.ends.clone() })
    }

    /// Whether a session is still open. This does not count as a use.
    pub fn is_open(&self, session: &Session) -> bool {
        self.open().get(&session.id).is_some_and(|session| session.is_open(Instant::now()))
    }

    /// Ends a session.
    pub fn end(&self, session: &Session) {
        self.open().remove(&session.id);
    }

    fn open(&self) -> MutexGuard<'_, HashMap<SessionId, Open>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    fn is_open(&self, now: Instant) -> bool {
        now - self.used < IDLE && now - self.began < LONGEST
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.ends.cancel();
    }
}

impl Token {
    fn random() -> Self {
        let mut bytes = [0; 32];
        let filled = default_provider().secure_random.fill(&mut bytes);
        filled.expect("the system has random bytes");
        Self(bytes)
    }

    /// Reads a token; `None` if the text has not its form.
    pub fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        let length = BASE64_URL_SAFE_NO_PAD.decode_slice(text, &mut bytes).ok()?;
        (length == bytes.len()).then_some(Self(bytes))
    }

    /// The token as text.
    pub fn reveal(&self) -> String {
        BASE64_URL_SAFE_NO_PAD.encode(self.0)
    }

    fn id(&self) -> SessionId {
        SessionId(Sha256::digest(self.0).into())
    }

    /// The token of the session's forms. The session's token cannot be derived from it.
    fn csrf(&self) -> String {
        let mut mac =
            Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes a key of any length");
        mac.update(b"csrf");
        BASE64_URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes())
    }
}

impl Session {
    /// What forms of this session carry.
    pub fn csrf(&self) -> &str {
        &self.csrf
    }

    /// Whether a form carries this session's token. Compares in constant time.
    pub fn is_csrf(&self, candidate: &str) -> bool {
        self.csrf.as_bytes().ct_eq(candidate.as_bytes()).into()
    }

    /// Waits until the session was ended. A session that is not used any more ends silently.
    pub async fn ended(&self) {
        self.ends.cancelled().await;
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionId(…)")
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_session_ends_when_it_is_not_used() {
        let sessions = Sessions::default();
        let token = sessions.begin();
        advance(IDLE - SECOND).await;
        let session = sessions.find(&token).unwrap();
        advance(IDLE - SECOND).await;
        assert!(sessions.is_open(&session));
        advance(SECOND).await;
        assert!(!sessions.is_open(&session) && sessions.find(&token).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_that_is_used_ends_at_last() {
        let sessions = Sessions::default();
        let token = sessions.begin();
        let steps = LONGEST.as_secs() / (IDLE.as_secs() / 2);
        for _ in 1..steps {
            advance(IDLE / 2).await;
            assert!(sessions.find(&token).is_some());
        }
        advance(IDLE / 2).await;
        assert!(sessions.find(&token).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn an_ended_session_is_not_found_and_its_streams_are_told() {
        let sessions = Sessions::default();
        let (token, other) = (sessions.begin(), sessions.begin());
        let session = sessions.find(&token).unwrap();
        sessions.end(&session);
        session.ended().await;
        assert!(sessions.find(&token).is_none() && sessions.find(&other).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn the_number_of_sessions_is_bounded() {
        let sessions = Sessions::default();
        let first = sessions.begin();
        let second = sessions.begin();
        advance(SECOND).await;
        assert!(sessions.find(&first).is_some());
        for _ in 2..=MAX_SESSIONS {
            sessions.begin();
        }
        assert_eq!(sessions.open().len(), MAX_SESSIONS);
        assert!(sessions.find(&second).is_none() && sessions.find(&first).is_some());
    }

    #[test]
    fn a_token_is_read_as_it_was_written() {
        let token = Token::random();
        let text = token.reveal();
        assert_eq!(Token::parse(&text).unwrap().0, token.0);
        for wrong in ["", "x", &text[1..], &format!("{text}A"), &format!("{text}AAAA")] {
            assert!(Token::parse(wrong).is_none(), "{wrong}");
        }
        assert!(!text.contains(&token.csrf()) && token.csrf() != Token::random().csrf());
    }
}

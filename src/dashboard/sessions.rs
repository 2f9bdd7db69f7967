//! The sessions of operators. A session begins with the admin key and is known by a random token, of
//! which only the hash is kept.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use rustls::crypto::ring::default_provider;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::limits::Store;

/// After how much time without a request a session ends.
const IDLE: Duration = Duration::from_secs(60 * 60);

/// After how much time a session ends in any case.
const LONGEST: Duration = Duration::from_secs(12 * 60 * 60);

/// How many sessions are kept. A new one then replaces the one that was used least recently.
const MAX_SESSIONS: usize = 256;

/// The sessions. Without replicas, none survives this process. Replicas accept each other's, which end with
/// the replica at which they began.
#[derive(Debug, Default)]
pub(super) struct Sessions(Mutex<HashMap<SessionId, Open>>);

/// The SHA-256 of a token.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct SessionId([u8; 32]);

/// A session as this process knows it.
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

/// An open session. `Debug` does not show the token of its forms.
#[derive(Clone)]
pub(super) struct Session {
    id: SessionId,
    /// What forms of this session carry, so that no other page can send them.
    csrf: String,
    ends: CancellationToken,
}

impl Sessions {
    /// Begins a session. If the replicas cannot be told, it is one of this process alone.
    pub async fn begin(&self, store: &Arc<dyn Store>) -> Token {
        let token = Token::random();
        let id = token.id();
        self.keep(id);
        if let Err(error) = store.open_login(&id.text(), IDLE, LONGEST).await {
            tracing::warn!(%error, "other replicas do not accept a new session of the dashboard");
        }
        token
    }

    /// The open session of a token. This counts as a use.
    pub async fn find(&self, token: &Token, store: &Arc<dyn Store>) -> Option<Session> {
        let id = token.id();
        let is_open = match self.is_open_for_all(id, Some(IDLE), store).await {
            Some(is_open) => is_open,
            None => self.is_open_here(id, Instant::now()),
        };
        if !is_open {
            self.open().remove(&id);
            return None;
        }
        let ends = self.keep(id);
        Some(Session { id, csrf: token.csrf(), ends })
    }

    /// Whether a session is still open. This does not count as a use.
    pub async fn is_open(&self, session: &Session, store: &Arc<dyn Store>) -> bool {
        match self.is_open_for_all(session.id, None, store).await {
            Some(is_open) => is_open,
            None => self.is_open_here(session.id, Instant::now()),
        }
    }

    /// Ends a session.
    pub async fn end(&self, session: &Session, store: &Arc<dyn Store>) {
        self.open().remove(&session.id);
        if let Err(error) = store.close_login(&session.id.text()).await {
            tracing::warn!(%error, "other replicas may accept a session of the dashboard that ended");
        }
    }

    /// What the replicas know of a session; `None` if there are no replicas, or they cannot be asked.
    async fn is_open_for_all(
        &self,
        id: SessionId,
        idle: Option<Duration>,
        store: &Arc<dyn Store>,
    ) -> Option<bool> {
        if !store.is_shared() {
            return None;
        }
        store.use_login(&id.text(), idle).await.ok()
    }

    fn is_open_here(&self, id: SessionId, now: Instant) -> bool {
        self.open().get(&id).is_some_and(|session| session.is_open(now))
    }

    /// Notes the use of a session that is open. Returns what tells its end.
    fn keep(&self, id: SessionId) -> CancellationToken {
        let now = Instant::now();
        let mut open = self.open();
        if let Some(session) = open.get_mut(&id) {
            session.used = now;
            return session.ends.clone();
        }
        open.retain(|_, session| session.is_open(now));
        if open.len() >= MAX_SESSIONS
            && let Some(oldest) = open.iter().min_by_key(|(_, session)| session.used)
        {
            let oldest = *oldest.0;
            open.remove(&oldest);
        }
        let ends = CancellationToken::new();
        open.insert(id, Open { began: now, used: now, ends: ends.clone() });
        ends
    }

    fn open(&self) -> MutexGuard<'_, HashMap<SessionId, Open>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SessionId {
    /// The id as it is kept in Redis. The token cannot be derived from it.
    fn text(self) -> String {
        BASE64_URL_SAFE_NO_PAD.encode(self.0)
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

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Session(…)")
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;
    use crate::limits::LocalStore;

    const SECOND: Duration = Duration::from_secs(1);

    fn store() -> Arc<dyn Store> {
        LocalStore::new(1)
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_ends_when_it_is_not_used() {
        let (sessions, store) = (Sessions::default(), store());
        let token = sessions.begin(&store).await;
        advance(IDLE - SECOND).await;
        let session = sessions.find(&token, &store).await.unwrap();
        advance(IDLE - SECOND).await;
        assert!(sessions.is_open(&session, &store).await);
        advance(SECOND).await;
        assert!(!sessions.is_open(&session, &store).await);
        assert!(sessions.find(&token, &store).await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_that_is_used_ends_at_last() {
        let (sessions, store) = (Sessions::default(), store());
        let token = sessions.begin(&store).await;
        let steps = LONGEST.as_secs() / (IDLE.as_secs() / 2);
        for _ in 1..steps {
            advance(IDLE / 2).await;
            assert!(sessions.find(&token, &store).await.is_some());
        }
        advance(IDLE / 2).await;
        assert!(sessions.find(&token, &store).await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn an_ended_session_is_not_found_and_its_streams_are_told() {
        let (sessions, store) = (Sessions::default(), store());
        let (token, other) = (sessions.begin(&store).await, sessions.begin(&store).await);
        let session = sessions.find(&token, &store).await.unwrap();
        sessions.end(&session, &store).await;
        session.ended().await;
        assert!(sessions.find(&token, &store).await.is_none());
        assert!(sessions.find(&other, &store).await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn the_number_of_sessions_is_bounded() {
        let (sessions, store) = (Sessions::default(), store());
        let first = sessions.begin(&store).await;
        let second = sessions.begin(&store).await;
        advance(SECOND).await;
        assert!(sessions.find(&first, &store).await.is_some());
        for _ in 2..=MAX_SESSIONS {
            sessions.begin(&store).await;
        }
        assert_eq!(sessions.open().len(), MAX_SESSIONS);
        assert!(sessions.find(&second, &store).await.is_none());
        assert!(sessions.find(&first, &store).await.is_some());
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
        assert!(token.id().text() != text);
    }
}

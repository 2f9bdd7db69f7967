//! Connections that switch from HTTP to another protocol, such as WebSockets.
//!
//! The server adds a [`Takeover`] to the extensions of each HTTP/1.1 request that asks for an
//! upgrade. A handler that answers with 101 gives it the session that follows. The server runs the
//! session as part of the connection: the connection counts as open, is waited for at shutdown, and
//! the session is told when it must end.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio_util::sync::CancellationToken;

/// Runs on a connection after HTTP. It must end within a second after the token is cancelled.
pub type Session = Box<dyn FnOnce(CancellationToken) -> BoxFuture<'static, ()> + Send>;

/// Lets a handler take over the connection of its request. All clones are for the same connection.
#[derive(Clone, Default)]
pub struct Takeover(Arc<Mutex<Option<Session>>>);

impl Takeover {
    /// Runs a session once the response, which must be 101, is sent. The session gets a token that is
    /// cancelled when it must end.
    pub fn with<F>(&self, session: impl FnOnce(CancellationToken) -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let session: Session = Box::new(|cut_off| session(cut_off).boxed());
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(session);
    }

    /// The session, if there is one. Only the server takes it.
    pub fn take(&self) -> Option<Session> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl fmt::Debug for Takeover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Takeover(…)")
    }
}

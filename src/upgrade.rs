//! Connections that go on in another protocol than HTTP, such as WebSockets.
//!
//! The server puts a [`Takeover`] among the extensions of each request over HTTP/1.1 that asks for
//! an upgrade. A handler that answers with 101 says with it what is done with the connection then.
//! The server runs that in the connection's place: it counts as open, is waited for at shutdown,
//! and is told when it has to end.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio_util::sync::CancellationToken;

/// What is done with a connection after HTTP. It ends soon after the token is cancelled.
pub type Session = Box<dyn FnOnce(CancellationToken) -> BoxFuture<'static, ()> + Send>;

/// Lets a handler take over the connection of its request. Clones are the same.
#[derive(Clone, Default)]
pub struct Takeover(Arc<Mutex<Option<Session>>>);

impl Takeover {
    /// Runs a session once the answer, which must be 101, is sent. The session is given a token that
    /// is cancelled when it has to end at once.
    pub fn with<F>(&self, session: impl FnOnce(CancellationToken) -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let session: Session = Box::new(|cut_off| session(cut_off).boxed());
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(session);
    }

    /// The session, if there is one. For the server.
    pub fn take(&self) -> Option<Session> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl fmt::Debug for Takeover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Takeover(…)")
    }
}

use std::net::SocketAddr;
use std::sync::Arc;

use http::StatusCode;
use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::api;
use crate::config::{AdminKey, Config};
use crate::gateway::Gateway;
use crate::limits;
use crate::limits::{Acquire as _, LeaseTerms, Semaphore};
use crate::server::{ServerLimits, Worker, serve};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

/// A service with a semaphore of one permit.
async fn start() -> (Gateway, SocketAddr, SemaphoreId, Arc<dyn Semaphore>) {
    let config = Config { admin_api_key: Some(AdminKey::new("key")), ..Config::default() };
    let gateway = Gateway::new(config, true).unwrap();
    let id = SemaphoreId::parse("jobs").unwrap();
    let (semaphore, _) = gateway.limiter.store().register(id.clone(), 1).await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let workers = vec![Worker::here(api::router(gateway.clone()))];
    let limits = ServerLimits {
        client_timeout: HOUR,
        grace: SECOND,
        ..ServerLimits::of(&Config::default())
    };
    tokio::spawn(serve(listener, workers, limits, CancellationToken::new()));
    (gateway, address, id, semaphore)
}

async fn leases(gateway: &Gateway, semaphore: &Arc<dyn Semaphore>) -> Vec<limits::Lease> {
    gateway.limiter.store().leases(semaphore).await.unwrap()
}

fn client(address: SocketAddr, id: &SemaphoreId) -> Service {
    Service::new(&format!("http://{address}/"), id, HeaderValue::from_static("key")).unwrap()
}

/// Several requests time out one after the other, and the client never leaves the queue.
#[tokio::test(start_paused = true)]
async fn a_client_that_waits_longer_than_one_request_keeps_its_position() {
    let (gateway, address, id, semaphore) = start().await;
    let terms = LeaseTerms { holder: "outside".into(), permits: 1, ttl: HOUR };
    let held = gateway.leases.acquire(id.clone(), &semaphore, terms, None, SECOND);
    let (held, _) = held.await.unwrap();
    let service = client(address, &id);
    let waits = tokio::spawn(async move {
        service
            .take(&LeaseOrder { holder: "inside".to_owned(), permits: 1, ttl: 30 * SECOND })
            .await
    });
    while semaphore.usage().waiting == 0 {
        tokio::task::yield_now().await;
    }
    let later = Arc::clone(&semaphore);
    let later = tokio::spawn(async move { later.acquire().await });
    for _ in 0..500 {
        sleep(SECOND).await;
        assert_eq!(semaphore.usage().waiting, 2);
    }
    gateway.limiter.store().release_lease(&id, &held.id).await.unwrap().unwrap();
    let lease = timeout(HOUR, waits).await.expect("it precedes the other in the queue").unwrap();
    let lease = lease.expect("it is at the head of the queue");
    assert!(!later.is_finished(), "it arrived later");
    assert_eq!(*leases(&gateway, &semaphore).await[0].id, *lease.lease_id);
    assert_eq!(semaphore.usage().in_use, 1);
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_renewed_until_it_is_lost() {
    let (gateway, address, id, semaphore) = start().await;
    let service = Arc::new(client(address, &id));
    let ttl = 30 * SECOND;
    let terms = LeaseOrder { holder: "inside".to_owned(), permits: 1, ttl };
    let lease = service.take(&terms).await.unwrap();
    let ends = Instant::now() + ttl;
    let (lease_id, keeps) = (lease.lease_id.clone(), Arc::clone(&service));
    let kept = tokio::spawn(async move { keeps.keep(&lease, ttl, ends).await });
    for _ in 0..100 {
        sleep(SECOND).await;
        assert_eq!(semaphore.usage().in_use, 1);
        let left = leases(&gateway, &semaphore).await[0].expires - Instant::now();
        assert!(left >= 2 * ttl / 3 - 2 * SECOND, "it is renewed after each third: {left:?}");
    }
    gateway.limiter.store().release_lease(&id, &lease_id).await.unwrap().unwrap();
    let released = Instant::now();
    let reason = kept.await.unwrap();
    assert!(reason.contains("was released"), "{reason}");
    assert!(released.elapsed() <= ttl / 3 + 2 * SECOND, "{:?}", released.elapsed());
}

fn refused(status: StatusCode, body: &Value) -> LeaseError {
    ClientError::Refused(Refusal::new(status, body)).into()
}

#[test]
fn only_transient_errors_are_retried() {
    let error = |status, code: &str| {
        let body = json!({"detail": "why", "code": code});
        refused(StatusCode::from_u16(status).unwrap(), &body)
    };
    assert!(matches!(error(409, "lease_unavailable"), LeaseError::Unavailable));
    assert!(matches!(error(503, "queue_full"), LeaseError::QueueFull));
    assert!(matches!(error(502, ""), LeaseError::Transient(_)));
    for (status, code) in [(409, "semaphore_deleted"), (404, "semaphore_not_found"), (422, "x")] {
        assert!(matches!(error(status, code), LeaseError::Refused(_)), "{code}");
    }
    let page = refused(StatusCode::GATEWAY_TIMEOUT, &Value::Null);
    assert_eq!(page.to_string(), "the service answered 504 Gateway Timeout");
}

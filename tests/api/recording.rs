//! An upstream on a bare socket that writes given bytes, one by one if necessary.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

/// An upstream that answers each connection with the same pieces and records its requests.
pub struct Recording {
    pub base_url: String,
    asked: Arc<Mutex<Vec<String>>>,
    task: AbortHandle,
}

impl Drop for Recording {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Recording {
    /// Answers with a head and then pieces of a body, each in its own chunk and write.
    pub async fn play(status: u16, content_type: &str, pieces: Vec<Vec<u8>>) -> Self {
        let head = format!(
            "HTTP/1.1 {status} Some Reason\r\ncontent-type: {content_type}\r\n\
             transfer-encoding: chunked\r\nx-recorded: yes\r\nconnection: close, x-hop\r\n\
             x-hop: 1\r\nalt-svc: h3=\":443\"\r\n\r\n"
        );
        let mut answer = vec![head.into_bytes()];
        answer.extend(
            pieces.iter().map(|piece| {
                [format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat()
            }),
        );
        answer.push(b"0\r\n\r\n".to_vec());
        Self::write(answer).await
    }

    /// Answers with these bytes, write by write.
    pub async fn write(answer: Vec<Vec<u8>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address: SocketAddr = listener.local_addr().expect("its address");
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (answer, asked_here) = (Arc::new(answer), Arc::clone(&asked));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&answer), Arc::clone(&asked_here)));
            }
        });
        let task = task.abort_handle();
        Self { base_url: format!("http://{address}"), asked, task }
    }

    /// The requests so far, head and body.
    pub fn requests(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

async fn serve(mut stream: TcpStream, answer: Arc<Vec<Vec<u8>>>, asked: Arc<Mutex<Vec<String>>>) {
    stream.set_nodelay(true).expect("a socket");
    let mut request = Vec::new();
    while !is_whole(&request) {
        match stream.read_buf(&mut request).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
    }
    asked.lock().unwrap().push(String::from_utf8_lossy(&request).into_owned());
    for piece in &*answer {
        // The client may have disconnected already.
        if stream.write_all(piece).await.is_err() {
            return;
        }
        tokio::task::yield_now().await;
    }
}

/// Whether a request, with a content length or without a body, is complete.
fn is_whole(request: &[u8]) -> bool {
    let text = String::from_utf8_lossy(request);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    length.is_none_or(|length| body.len() >= length.parse().expect("a length"))
}

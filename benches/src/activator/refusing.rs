//! Upstream's permissions: an API that lets nobody list EndpointSlices, in front of one that does.

use anyhow::Result;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
};

const REFUSED: &str = "/apis/discovery.k8s.io/v1/endpointslices";
const STATUS: &str = r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","reason":"Forbidden",
"message":"endpointslices.discovery.k8s.io is forbidden","code":403}"#;

/// Its URL; `behind` is the authority of the API itself.
pub(super) async fn start(behind: String) -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let behind = behind.clone();
            tokio::spawn(async move { pass(client, &behind).await });
        }
    });
    Ok(url)
}

/// One request; each has a connection of its own, so that every one is looked at.
async fn pass(mut client: TcpStream, behind: &str) -> Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await?);
    }
    let line = String::from_utf8_lossy(&head);
    let target = line.split_ascii_whitespace().nth(1).unwrap_or_default();
    if target.split('?').next() == Some(REFUSED) {
        let length = STATUS.len();
        let answer = format!("HTTP/1.1 403 Forbidden\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{STATUS}");
        client.write_all(answer.as_bytes()).await?;
        return Ok(());
    }
    let mut api = TcpStream::connect(behind).await?;
    head.truncate(head.len() - 2);
    head.extend_from_slice(b"Connection: close\r\n\r\n");
    api.write_all(&head).await?;
    copy_bidirectional(&mut client, &mut api).await?;
    Ok(())
}

//! The metrics' HTTP endpoint: one thread that answers one scrape after another.
//!
//! It knows addresses and HTTP, as tiny_http offers it, and neither counters nor how they are asked for.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};

use serde::Deserialize;
use tiny_http::{Header, Method, Response, Server};

use crate::control::error::{Failure, FailureKind};

/// What the configuration says of metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Metrics {
    /// Where they are served; nowhere when absent.
    pub listen: Option<SocketAddr>,
    /// Whether that may be an address which others than this host reach.
    pub public: bool,
}

/// Opens the endpoint. `None` when none is wanted.
///
/// # Errors
/// [`Failure`]: an address that others reach, or one that is taken.
pub(super) fn listen(metrics: &Metrics) -> Result<Option<TcpListener>, Failure> {
    let Some(address) = metrics.listen else { return Ok(None) };
    if !metrics.public && !address.ip().is_loopback() {
        let message = format!(
            "metrics on {address}: others than this host reach that address, and there is no password; take \
             127.0.0.1:{}, or say --metrics-public",
            address.port()
        );
        return Err(Failure::new(FailureKind::BadValue, message));
    }
    TcpListener::bind(address).map(Some).map_err(|error| {
        let kind = match error.kind() {
            ErrorKind::AddrInUse => FailureKind::Taken,
            ErrorKind::PermissionDenied => FailureKind::Denied,
            _ => FailureKind::Other,
        };
        Failure::new(kind, format!("metrics on {address}: {error}; name another --metrics address"))
    })
}

/// Serves for as long as the process lives. `read` returns the document, or nothing when the daemon is about to end.
///
/// # Errors
/// When the system gives no thread.
pub(super) fn serve(
    listener: TcpListener,
    read: impl Fn() -> Option<String> + Send + 'static,
) -> Result<(), Failure> {
    let failed = |error: String| Failure::new(FailureKind::Other, format!("serving metrics: {error}"));
    let server = Server::from_listener(listener, None).map_err(|error| failed(error.to_string()))?;
    let kind = Header::from_bytes("Content-Type", crate::metrics::CONTENT_TYPE)
        .map_err(|()| failed("bad content type".into()))?;
    let work = move || {
        for request in server.incoming_requests() {
            let path = request.url().split('?').next().unwrap_or_default();
            let (code, text) = match (request.method(), path) {
                (Method::Get | Method::Head, "/metrics") => match read() {
                    Some(text) => (200, text),
                    None => (503, "the daemon is about to end\n".into()),
                },
                (Method::Get | Method::Head, _) => (404, "there is /metrics here, and nothing else\n".into()),
                _ => (405, "this can only be read\n".into()),
            };
            let mut response = Response::from_string(text).with_status_code(code);
            if code == 200 {
                response = response.with_header(kind.clone());
            }
            // Whoever asked may have gone away.
            let _ = request.respond(response);
        }
    };
    std::thread::Builder::new()
        .name("metrics".into())
        .spawn(work)
        .map_err(|error| failed(error.to_string()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;

    use super::*;

    fn ask(address: SocketAddr, request: &str) -> (String, String) {
        let mut stream = TcpStream::connect(address).unwrap();
        write!(stream, "{request}\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        (head.to_owned(), body.to_owned())
    }

    #[test]
    fn a_scrape_is_answered_and_nothing_else() {
        let metrics = Metrics { listen: Some("127.0.0.1:0".parse().unwrap()), public: false };
        let listener = listen(&metrics).unwrap().unwrap();
        let address = listener.local_addr().unwrap();
        let stats = serde_json::json!({ "worker": { "passes": 41 } });
        serve(listener, move || Some(crate::metrics::text(&stats))).unwrap();
        let (head, body) = ask(address, "GET /metrics HTTP/1.1");
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        assert!(head.contains("openmetrics-text; version=1.0.0"), "{head}");
        assert!(body.contains("\ndrayage_worker_passes_total{worker=\"0\"} 41\n"), "{body}");
        assert!(ask(address, "GET / HTTP/1.1").0.starts_with("HTTP/1.1 404 "));
        assert!(ask(address, "POST /metrics HTTP/1.1").0.starts_with("HTTP/1.1 405 "));
        assert!(ask(address, "nonsense").0.contains(" 400 "));
    }

    #[test]
    fn an_address_that_others_reach_must_be_wanted() {
        assert!(listen(&Metrics::default()).unwrap().is_none());
        let open = Metrics { listen: Some("0.0.0.0:0".parse().unwrap()), public: false };
        let failure = listen(&open).unwrap_err();
        assert_eq!(failure.kind, FailureKind::BadValue);
        assert!(failure.message.contains("0.0.0.0:0") && failure.message.contains("--metrics-public"));
        assert!(listen(&Metrics { public: true, ..open }).unwrap().is_some());
    }

    #[test]
    fn an_address_that_is_taken_is_named() {
        let first = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = first.local_addr().unwrap();
        let failure = listen(&Metrics { listen: Some(address), public: false }).unwrap_err();
        assert_eq!(failure.kind, FailureKind::Taken);
        assert!(failure.message.contains(&address.to_string()), "{failure}");
    }
}

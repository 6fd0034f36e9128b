//! What is asked for of an attachment, by the command line or in the configuration: its texts, and what they mean. Knows
//! nothing of what is running.

use super::Defaults;
use crate::control::details::Asked;
use crate::control::error::{Failure, FailureKind};
use crate::control::{AttachRequest, DEFAULT_SIZE_BYTES};
use crate::ipc::Request;
use crate::switch::Mac;

/// Turns the texts of a request into what they mean.
///
/// # Errors
/// [`Failure`] of the kind [`FailureKind::BadValue`].
pub fn attach_request(request: Request, defaults: Defaults) -> Result<AttachRequest, Failure> {
    let Request::Attach {
        domain,
        vif,
        mac,
        port,
        policy,
        urgent,
        size_bytes,
        containers,
        rules,
        staged,
        trusted,
    } = request
    else {
        return Err(Failure::new(FailureKind::Other, "not an attachment"));
    };
    let bad = |message: String| Failure::new(FailureKind::BadValue, message);
    let mac = mac
        .map(|text| {
            let parsed = drayage_wire::keys::parse_mac(text.as_bytes()).map(Mac);
            parsed.ok_or_else(|| bad(format!("bad mac {text:?}: write six bytes as in 00:16:3e:01:02:03")))
        })
        .transpose()?;
    let policy = match policy {
        Some(text) => text.parse().map_err(|error: crate::policy::BadPolicy| bad(error.to_string()))?,
        None => defaults.policy,
    };
    let urgent = match urgent {
        Some(text) => text.parse().map_err(|error: crate::class::BadClasses| bad(error.to_string()))?,
        None => defaults.urgent,
    };
    let port = port
        .map(|text| text.parse().map_err(|error: crate::port::spec::BadPort| bad(error.to_string())))
        .transpose()?;
    let size_bytes = size_bytes.unwrap_or(DEFAULT_SIZE_BYTES);
    let mapping = Asked { staged: staged.unwrap_or(defaults.staged), trusted };
    Ok(AttachRequest { domain, vif, mac, port, policy, urgent, size_bytes, containers, rules, mapping })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Policy;

    fn attach(mac: Option<&str>, port: Option<&str>, policy: Option<&str>) -> Result<AttachRequest, Failure> {
        let request = Request::Attach {
            domain: "guest".into(),
            vif: None,
            mac: mac.map(Into::into),
            port: port.map(Into::into),
            policy: policy.map(Into::into),
            urgent: Some("arp".into()),
            size_bytes: None,
            containers: Default::default(),
            staged: None,
            trusted: Default::default(),
            rules: Default::default(),
        };
        attach_request(request, Defaults::default())
    }

    #[test]
    fn texts_are_judged_and_named() {
        let good = attach(Some("00:16:3e:00:00:01"), Some("tap:dry0"), None).unwrap();
        assert_eq!((good.policy, good.size_bytes), (Policy::default(), 65_536));
        assert_eq!(good.urgent.to_string(), "arp");
        for (request, named) in [
            (attach(Some("00:16:3e"), None, None), "bad mac \"00:16:3e\""),
            (attach(None, Some("eth0"), None), "bad port \"eth0\""),
            (attach(None, None, Some("soon")), "bad policy \"soon\""),
        ] {
            let failure = request.unwrap_err();
            assert!(failure.message.contains(named), "{failure}");
            assert_eq!(failure.kind, FailureKind::BadValue);
        }
    }
}

//! What is read from xenstore is written by others: the parsers take any bytes, and what they accept is what
//! they would write.

use drayage_wire::control;
use drayage_wire::keys::{State, parse_mac, parse_number};
use drayage_wire::netif::{ExtraInfo, RxRequest, RxResponse, TxRequest, TxResponse};
use drayage_wire::ring::{Index, Slot};
use drayage_wire::xs::{self, Header, Kind};
use proptest::prelude::*;

/// Bytes that are nearly what a parser wants, and bytes that are not.
fn text() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..40),
        proptest::collection::vec(prop::sample::select(b"0123456789+- xX".to_vec()), 0..14),
        proptest::collection::vec(prop::sample::select(b"0123456789abcdefABCDEF::::+g".to_vec()), 0..20),
        proptest::collection::vec(prop::sample::select(b"ab/\0".to_vec()), 0..20),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2048, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_number_is_what_the_standard_library_would_say(bytes in text(), number: u32) {
        let digits = !bytes.is_empty() && bytes.len() <= 10 && bytes.iter().all(u8::is_ascii_digit);
        let standard = str::from_utf8(&bytes).ok().filter(|_| digits).and_then(|text| text.parse().ok());
        prop_assert_eq!(parse_number(&bytes), standard);
        prop_assert_eq!(parse_number(number.to_string().as_bytes()), Some(number));
    }

    #[test]
    fn an_address_survives_its_spelling(bytes in text(), mac: [u8; 6]) {
        let spelt = mac.map(|byte| format!("{byte:02x}")).join(":");
        prop_assert_eq!(parse_mac(spelt.as_bytes()), Some(mac));
        prop_assert_eq!(parse_mac(spelt.to_uppercase().as_bytes()), Some(mac));
        prop_assert_eq!(parse_mac(&spelt.as_bytes()[..16]).is_some(), true, "one digit is enough");
        prop_assert_eq!(parse_mac(&spelt.as_bytes()[..15]), None);
        if let Some(mac) = parse_mac(&bytes) {
            let text = str::from_utf8(&bytes).expect("hexadecimal and colons");
            let parts: Vec<_> = text.split(':').map(|part| u8::from_str_radix(part, 16)).collect();
            prop_assert_eq!(parts, mac.map(Ok).to_vec());
        }
    }

    #[test]
    fn a_state_is_one_digit(bytes in text()) {
        let state = State::parse(&bytes);
        if state != State::Unknown {
            prop_assert_eq!(state.value().as_bytes(), &bytes[..]);
        }
    }

    #[test]
    fn strings_are_the_parts_between_nuls(bytes in text(), parts in proptest::collection::vec("[a-z/]{1,9}", 0..6)) {
        for part in xs::strings(&bytes) {
            prop_assert!(!part.contains(&0));
        }
        let joined: Vec<u8> = parts.iter().flat_map(|part| part.bytes().chain([0])).collect();
        prop_assert!(xs::strings(&joined).eq(parts.iter().map(String::as_bytes)));
        match xs::watch_event(&joined) {
            Some((path, token)) => prop_assert_eq!(
                (path, token), (parts[0].as_bytes(), parts[1].as_bytes())
            ),
            None => prop_assert!(parts.len() < 2),
        }
        let _ = xs::watch_event(&bytes);
    }

    #[test]
    fn a_message_header_survives_its_bytes(bytes: [u8; xs::HEADER_BYTES]) {
        let header = Header::from_bytes(bytes);
        prop_assert_eq!(header.to_bytes(), bytes);
        if let Some(kind) = Kind::from_number(header.kind) {
            prop_assert_eq!(kind as u32, header.kind);
        }
    }

    #[test]
    fn every_slot_is_some_message(words: [u32; 4]) {
        let [a, b, c, _] = words;
        prop_assert_eq!(TxRequest::from_words(words).to_words(), [a, b, c, 0]);
        prop_assert_eq!(TxResponse::from_words(words).to_words(), [a, 0, 0, 0]);
        prop_assert_eq!(RxRequest::from_words(words).to_words(), [a & 0xffff, b, 0, 0]);
        prop_assert_eq!(RxResponse::from_words(words).to_words(), [a, b, 0, 0]);
        prop_assert_eq!(control::Request::from_words(words).to_words(), words);
        prop_assert_eq!(control::Response::from_words(words).to_words(), [a, b, c, 0]);
        prop_assert_eq!(control::Gref::from_words([a, b]).to_words(), [a, b]);
        let extra = ExtraInfo::from_words(words);
        prop_assert_eq!(ExtraInfo::from_words(extra.to_words()), extra);
    }

    #[test]
    fn an_index_is_a_distance(start: u32, n: u32) {
        let index = Index(start);
        prop_assert_eq!(index.plus(n).since(index), n);
        prop_assert_eq!(index.plus(n).slot(), (index.slot() + (n % 256) as usize) % 256);
    }
}

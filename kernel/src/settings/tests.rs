//! Command lines, good and bad.

use alloc::string::{String, ToString};

use super::*;

fn error(line: &str) -> String {
    Settings::parse(line).expect_err(line).to_string()
}

fn addressing(line: &str) -> Addressing {
    Settings::parse(line).unwrap().addressing(0)
}

#[test]
fn nothing_asks_for_echo_by_dhcp_with_containers() {
    let settings = Settings::parse("").unwrap();
    assert_eq!(settings.app.name, "echo");
    assert_eq!(settings.addressing(0), Addressing::default());
    assert_eq!(settings.addressing(3).ipv4, Ipv4Source::Dhcp);
    assert_eq!(settings.containers, Containers { rx: Direction::Containers, tx: Direction::Containers });
    assert_eq!(settings.container_bytes, None);
    assert_eq!(settings.staged, Staging::IfTrusted);
}

#[test]
fn every_common_setting_is_taken() {
    let line = " app=sink  ip=10.0.0.2/24,fd00::2/64 gw=10.0.0.1,fe80::1\tip1=none containers=rx container-bytes=8192 ";
    let settings = Settings::parse(line).unwrap();
    assert_eq!(settings.app.name, "sink");
    let first = settings.addressing(0);
    assert_eq!(first.ipv4, Ipv4Source::Fixed);
    assert_eq!(first.fixed, ["10.0.0.2/24".parse().unwrap(), "fd00::2/64".parse().unwrap()]);
    assert_eq!(first.gateway_v4, Some(Ipv4Address::new(10, 0, 0, 1)));
    assert_eq!(first.gateway_v6, Some("fe80::1".parse().unwrap()));
    assert!(first.has_fixed_v6());
    let second = settings.addressing(1);
    assert_eq!((second.ipv4, second.fixed.len()), (Ipv4Source::Fixed, 0));
    assert_eq!(settings.containers, Containers { rx: Direction::Containers, tx: Direction::Plain });
    assert_eq!(settings.container_bytes, Some(8192));
}

#[test]
fn pages_are_staged_as_the_setting_says() {
    assert_eq!(Settings::parse("staged=on").unwrap().staged, Staging::On);
    assert_eq!(Settings::parse("staged=off").unwrap().staged, Staging::Off);
    assert!(error("staged=yes").contains("on, or off"));
}

#[test]
fn dhcp_goes_with_a_static_ipv6_address() {
    let both = addressing("ip=dhcp,fd00::2/64");
    assert_eq!((both.ipv4, both.fixed.len()), (Ipv4Source::Dhcp, 1));
    assert!(error("ip=dhcp,10.0.0.2/24").contains("exclude each other"));
}

#[test]
fn an_interface_between_two_with_settings_asks_by_dhcp() {
    let settings = Settings::parse("ip=none ip2=10.2.0.2/16 gw2=10.2.0.1").unwrap();
    assert_eq!(settings.addressing(1).ipv4, Ipv4Source::Dhcp);
    assert_eq!(settings.addressing(2).gateway_v4, Some(Ipv4Address::new(10, 2, 0, 1)));
}

#[test]
fn unknown_keys_are_named_with_what_is_valid() {
    assert_eq!(
        error("aap=echo"),
        "there is no setting \"aap\" (did you mean \"app\"?); valid are app, ip, gw, containers, container-bytes, staged, port"
    );
    assert!(error("root=/dev/xvda1").starts_with("there is no setting \"root\"; valid are app, "));
    assert!(error("ip8=dhcp").contains("no setting \"ip8\""));
    assert!(error("ip01=dhcp").contains("no setting"));
    assert_eq!(
        error("app=sink rate=5"),
        "\"rate\" is a setting of app=source, and this is app=sink; valid are app, ip, gw, containers, container-bytes, staged, port, verify"
    );
}

#[test]
fn words_that_are_no_pairs_are_refused() {
    assert_eq!(error("quiet"), "\"quiet\" is not of the form key=value");
    assert_eq!(error("=x"), "\"=x\" is not of the form key=value");
    assert_eq!(error("app=echo app=sink"), "\"app\" is given more than once");
}

#[test]
fn bad_values_are_named_with_their_form() {
    assert_eq!(error("app=ecko"), "app=ecko: expected echo, sink, source, forward, check");
    assert_eq!(error("containers=yes"), "containers=yes: expected on, off, rx or tx");
    for bytes in ["4095", "65537", "", "-1", "+4096", "4k", "99999999999999999999999"] {
        assert!(error(&alloc::format!("container-bytes={bytes}")).contains("4096 to 65536"));
    }
    for ip in [
        "10.0.0.2",
        "10.0.0.2/33",
        "10.0.0/24",
        "224.0.0.1/24",
        "0.0.0.0/0",
        "255.255.255.255/32",
        "10.0.0.255/24",
        "127.0.0.1/8",
        "::/64",
        "::1/128",
        "ff02::1/64",
        "fd00::2",
        "",
        "dhcp,",
        "none,dhcp",
        "10.0.0.2/0",
        "x",
    ] {
        assert!(error(&alloc::format!("ip={ip}")).contains(&alloc::format!("ip={ip}: expected dhcp, none")));
    }
    assert!(error("ip=10.0.0.2/24,10.0.0.2/24").contains("once"));
    assert!(
        error("ip=10.0.0.2/24,10.0.0.3/24,10.0.0.4/24,10.0.0.5/24,10.0.0.6/24").contains("no more than 4")
    );
}

#[test]
fn routers_must_be_within_reach() {
    assert!(error("gw=10.0.0.1").contains("network of a static address"));
    assert!(error("ip=10.0.0.2/24 gw=10.0.1.1").starts_with("gw=10.0.1.1: "));
    assert!(error("ip=10.0.0.2/24 gw=10.0.0.1,10.0.0.3").contains("expected the address of a router"));
    assert!(error("ip=10.0.0.2/24 gw=10.0.0.1/24").contains("expected"));
    assert!(error("ip=fd00::2/64 gw=ff02::1").contains("expected"));
}

#[test]
fn source_needs_somebody_to_send_to() {
    assert!(error("app=source").starts_with("app=source needs to="));
    for to in ["10.0.0.1", "10.0.0.1:0", "0.0.0.0:9", "fd00::1:9", "host:9", "10.0.0.1:70000"] {
        assert!(error(&alloc::format!("app=source to={to}")).contains("expected ADDRESS:PORT"), "{to}");
    }
    assert!(Settings::parse("app=source to=10.0.0.1:9 size=60 rate=0 count=18446744073709551615").is_ok());
    assert!(Settings::parse("app=source to=[fd00::1]:9 size=70").is_ok());
    assert!(error("app=source to=[fd00::1]:9 size=60").contains("70 to 1514 for IPv6"));
    assert!(error("app=source to=10.0.0.1:9 size=1515").contains("60 to 1514"));
}

#[test]
fn ports_leave_room_for_the_counters() {
    assert!(Settings::parse("app=sink port=65534").is_ok());
    assert!(error("app=sink port=65535").contains("1 to 65534"));
    assert!(error("app=echo port=0").contains("1 to 65535"));
}

//! The command line as its users meet it: what it prints, where, and the exit code. The daemon at the other end of
//! the socket is played by the test.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread::JoinHandle;

/// A folder of one test's own.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("drayage-cli-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a temporary folder");
        Self(path)
    }

    fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

struct Said {
    code: i32,
    out: String,
    err: String,
}

fn drayage(socket: &Path, args: &[&str]) -> Said {
    let Output { status, stdout, stderr } = Command::new(env!("CARGO_BIN_EXE_drayage"))
        .arg("--socket")
        .arg(socket)
        .args(args)
        .output()
        .expect("the binary runs");
    let text = |bytes| String::from_utf8(bytes).expect("plain text");
    Said { code: status.code().expect("no signal"), out: text(stdout), err: text(stderr) }
}

/// Answers one request with a line, and returns the request.
fn daemon(socket: &Path, reply: &'static str) -> JoinHandle<String> {
    let listener = UnixListener::bind(socket).expect("a socket in a temporary folder");
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("the command connects");
        let mut request = String::new();
        let reader = stream.try_clone().expect("a descriptor");
        BufReader::new(reader).read_line(&mut request).expect("a request");
        stream.write_all(reply.as_bytes()).expect("the command reads");
        request
    })
}

#[test]
fn help_lists_the_commands_and_the_exit_codes() {
    let said = drayage(Path::new("/nonexistent"), &["--help"]);
    assert_eq!((said.code, said.err.as_str()), (0, ""));
    for part in
        ["run", "attach", "detach", "list", "stats", "doctor", "Exit codes:", "7  the daemon does not run"]
    {
        assert!(said.out.contains(part), "{part:?} is not in {}", said.out);
    }
    for command in ["run", "attach", "detach", "list", "stats", "doctor"] {
        assert_eq!(drayage(Path::new("/nonexistent"), &[command, "--help"]).code, 0, "{command}");
    }
    assert!(drayage(Path::new("/nonexistent"), &["--version"]).out.contains(env!("CARGO_PKG_VERSION")));
}

#[test]
fn a_command_line_that_makes_no_sense_ends_with_2() {
    for args in
        [&["frobnicate"][..], &[], &["attach"], &["detach"], &["attach", "g", "--containers", "maybe"]]
    {
        let said = drayage(Path::new("/nonexistent"), args);
        assert_eq!((said.code, said.out.as_str()), (2, ""), "{args:?}");
        assert!(said.err.contains("--help") || said.err.contains("Usage:"), "{args:?}: {}", said.err);
    }
}

#[test]
fn without_a_daemon_every_command_says_how_to_start_it() {
    let folder = Folder::new("none");
    let socket = folder.join("sock");
    for args in [&["list"][..], &["stats", "--json"], &["attach", "g"], &["detach", "g"]] {
        let said = drayage(&socket, args);
        assert_eq!((said.code, said.out.as_str()), (7, ""), "{args:?}");
        assert!(said.err.starts_with("drayage: the daemon does not run"), "{}", said.err);
        assert!(said.err.contains("sock") && said.err.contains("`drayage run`"), "{}", said.err);
    }
}

#[test]
fn the_daemon_says_what_it_lacks_on_a_host_without_xen_and_leaves_no_socket() {
    if Path::new("/dev/xen/gntdev").exists() {
        eprintln!("SKIPPED: this is a Xen host");
        return;
    }
    let folder = Folder::new("noxen");
    let socket = folder.join("sock");
    let said = drayage(&socket, &["run"]);
    assert_eq!(said.code, 6, "{}", said.err);
    assert!(said.err.contains("/dev/xen/gntdev") && said.err.contains("drayage doctor"), "{}", said.err);
    assert!(!socket.exists(), "the socket is removed");
}

#[test]
fn a_socket_path_that_is_something_else_is_left_alone() {
    let folder = Folder::new("file");
    let file = folder.join("precious");
    std::fs::write(&file, "data").expect("a file");
    let said = drayage(&file, &["run"]);
    assert_eq!(said.code, 4, "{}", said.err);
    assert!(said.err.contains("precious") && said.err.contains("no socket"), "{}", said.err);
    assert_eq!(std::fs::read_to_string(&file).expect("it is still there"), "data");
}

#[test]
fn a_second_daemon_is_refused() {
    let folder = Folder::new("second");
    let socket = folder.join("sock");
    let _first = UnixListener::bind(&socket).expect("a socket");
    let said = drayage(&socket, &["run"]);
    assert_eq!(said.code, 4, "{}", said.err);
    assert!(said.err.contains("already"), "{}", said.err);
    assert!(socket.exists(), "the first one's socket stays");
}

#[test]
fn a_configuration_is_judged() {
    let folder = Folder::new("config");
    for (text, named) in [
        ("", None),
        ("speed = 9", Some("speed")),
        ("[worker]\nholdoff_us = \"much\"", Some("holdoff_us")),
        ("= nonsense", Some("config")),
    ] {
        let config = folder.join("config.toml");
        std::fs::write(&config, text).expect("a file");
        let said = drayage(&folder.join("sock"), &["run", "--config", &config.to_string_lossy()]);
        match named {
            Some(named) => {
                assert_eq!(said.code, 2, "{}", said.err);
                assert!(said.err.contains("config.toml") && said.err.contains(named), "{}", said.err);
            }
            None => assert_ne!(said.code, 2, "an empty one is good: {}", said.err),
        }
    }
    let missing = folder.join("missing.toml");
    let said = drayage(&folder.join("sock"), &["run", "--config", &missing.to_string_lossy()]);
    assert!(said.code == 2 && said.err.contains("missing.toml"), "{}", said.err);
}

#[test]
fn what_the_daemon_refuses_becomes_an_exit_code() {
    for (kind, reply, code) in [
        ("other", "{\"error\":{\"kind\":\"other\",\"message\":\"why\"}}\n", 1),
        ("bad_value", "{\"error\":{\"kind\":\"bad_value\",\"message\":\"why\"}}\n", 2),
        ("not_found", "{\"error\":{\"kind\":\"not_found\",\"message\":\"why\"}}\n", 3),
        ("taken", "{\"error\":{\"kind\":\"taken\",\"message\":\"why\"}}\n", 4),
        ("denied", "{\"error\":{\"kind\":\"denied\",\"message\":\"why\"}}\n", 5),
        ("no_xen", "{\"error\":{\"kind\":\"no_xen\",\"message\":\"why\"}}\n", 6),
        ("nonsense", "what?\n", 1),
        ("silence", "", 1),
    ] {
        let folder = Folder::new(kind);
        let socket = folder.join("sock");
        let daemon = daemon(&socket, reply);
        let said = drayage(&socket, &["detach", "guest"]);
        assert_eq!((said.code, said.out.as_str()), (code, ""), "{kind}: {}", said.err);
        assert!(said.err.starts_with("drayage: "), "{}", said.err);
        assert!(daemon.join().expect("no panic").contains("\"op\":\"detach\""));
    }
}

#[test]
fn what_was_asked_for_is_what_the_daemon_is_told() {
    let folder = Folder::new("told");
    let socket = folder.join("sock");
    let daemon = daemon(&socket, "{\"error\":{\"kind\":\"taken\",\"message\":\"why\"}}\n");
    let args = ["attach", "web", "--vif", "2", "--mac", "00:16:3e:01:02:03", "--port", "tap:t0,bridge=br0"];
    let more = ["--policy", "fixed:size=8192,timeout=100", "--size", "8192", "--containers", "off"];
    let urgent = ["--urgent", "arp,ef"];
    let rules = ["--locked-mac", "--isolated", "--staged", "on", "--trusted", "off"];
    assert_eq!(drayage(&socket, &[&args[..], &more[..], &urgent, &rules].concat()).code, 4);
    let told: serde_json::Value = serde_json::from_str(&daemon.join().expect("no panic")).expect("JSON");
    let expected = serde_json::json!({
        "op": "attach", "domain": "web", "vif": 2, "mac": "00:16:3e:01:02:03", "port": "tap:t0,bridge=br0",
        "policy": "fixed:size=8192,timeout=100", "urgent": "arp,ef", "size_bytes": 8192, "containers": "off",
        "locked_mac": true, "isolated": true, "staged": "on", "trusted": "off",
    });
    assert_eq!(told, expected);
}

#[test]
fn an_empty_list_is_a_table_for_people_and_json_for_programs() {
    for (name, json) in [("table", false), ("json", true)] {
        let folder = Folder::new(name);
        let socket = folder.join("sock");
        let daemon = daemon(&socket, "{\"ok\":[]}\n");
        let said = drayage(&socket, if json { &["list", "--json"] } else { &["list"] });
        assert_eq!((said.code, said.err.as_str()), (0, ""));
        daemon.join().expect("no panic");
        assert_eq!(serde_json::from_str::<Vec<u8>>(&said.out).is_ok(), json, "{}", said.out);
    }
}

#[test]
fn doctor_names_every_check_and_what_to_do() {
    if Path::new("/dev/xen/gntdev").exists() {
        eprintln!("SKIPPED: this is a Xen host");
        return;
    }
    let folder = Folder::new("doctor");
    let said = drayage(&folder.join("sock"), &["doctor"]);
    assert_eq!(said.code, 1);
    for part in ["BAD", "/dev/xen/gntdev", "modprobe xen-gntdev", "xenstore", "daemon", "drayage run"] {
        assert!(said.out.contains(part), "{part:?} is not in {}", said.out);
    }
    let said = drayage(&folder.join("sock"), &["doctor", "--json"]);
    let checks: Vec<serde_json::Value> = serde_json::from_str(&said.out).expect("JSON alone");
    assert!(said.code == 1 && checks.len() >= 5, "{}", said.out);
}

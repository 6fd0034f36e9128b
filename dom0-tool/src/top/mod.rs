//! `drayage top`: a live view of the counters in a terminal.
//!
//! It asks the daemon once in a while, takes keys, and draws. What is shown is the model's, how it looks the view's.

mod model;
mod view;

use std::io::{self, IsTerminal};
use std::path::Path;
use std::time::{Duration, Instant};

use drayage::control::error::{Failure, FailureKind};
use drayage::ipc::{Request, Stats, ask};
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use model::{Key, Model};

/// Shows the view until it is left.
pub(crate) fn show(socket: &Path, interval: Duration) -> Result<(), Failure> {
    if !io::stdout().is_terminal() {
        let message = "top needs a terminal; `drayage stats --watch` does not";
        return Err(Failure::new(FailureKind::BadValue, message));
    }
    // Before the screen is taken: a daemon that does not run is said in plain text.
    let first: Stats = ask(socket, &Request::Stats)?;
    let mut terminal = ratatui::try_init().map_err(|error| failed(&error))?;
    let result = work(&mut terminal, socket, interval, first);
    ratatui::restore();
    result
}

fn failed(error: &io::Error) -> Failure {
    Failure::new(FailureKind::Other, format!("using the terminal: {error}"))
}

fn work(
    terminal: &mut DefaultTerminal,
    socket: &Path,
    interval: Duration,
    first: Stats,
) -> Result<(), Failure> {
    let start = Instant::now();
    let now_ns = || start.elapsed().as_nanos() as u64;
    let mut model = Model::new();
    model.update(first, now_ns());
    let mut due = Instant::now() + interval;
    loop {
        terminal.draw(|frame| view::draw(frame, &model)).map_err(|error| failed(&error))?;
        let left = due.saturating_duration_since(Instant::now());
        if event::poll(left).map_err(|error| failed(&error))? {
            let event = event::read().map_err(|error| failed(&error))?;
            if let Some(key) = key(&event)
                && !model.key(key)
            {
                return Ok(());
            }
            continue;
        }
        match ask::<Stats>(socket, &Request::Stats) {
            Ok(stats) => model.update(stats, now_ns()),
            // It may come back.
            Err(failure) => model.trouble = Some(failure.message),
        }
        due = Instant::now() + interval;
    }
}

fn key(event: &Event) -> Option<Key> {
    let Event::Key(KeyEvent { code, modifiers, kind: KeyEventKind::Press | KeyEventKind::Repeat, .. }) =
        event
    else {
        return None;
    };
    Some(match code {
        KeyCode::Char('c') if modifiers.contains(KeyModifiers::CONTROL) => Key::Quit,
        KeyCode::Char('q') | KeyCode::Esc => Key::Quit,
        KeyCode::Up => Key::Up,
        KeyCode::Down => Key::Down,
        KeyCode::Char('s') | KeyCode::Right => Key::NextSort,
        KeyCode::Left => Key::PreviousSort,
        _ => return None,
    })
}

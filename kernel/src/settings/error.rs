//! Why a command line could not be taken, in words for whoever wrote it.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;

use super::Key;

/// A word of the command line that is unknown or malformed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingError {
    /// A word without an equals sign, or with nothing in front of it.
    #[error("{word:?} is not of the form key=value")]
    NotAPair {
        /// The word.
        word: Box<str>,
    },
    /// A key that nobody knows.
    #[error("there is no setting {key:?}{hint}; valid are {valid}")]
    Unknown {
        /// The key.
        key: Box<str>,
        /// A key that looks like it, as a question.
        hint: Box<str>,
        /// All that would be valid.
        valid: Box<str>,
    },
    /// A key of another app.
    #[error("{key:?} is a setting of app={owner}, and this is app={app}; valid are {valid}")]
    OtherApp {
        /// The key.
        key: Box<str>,
        /// The app that knows it.
        owner: &'static str,
        /// The app that was chosen.
        app: &'static str,
        /// All that would be valid.
        valid: Box<str>,
    },
    /// A key that is there more than once.
    #[error("{key:?} is given more than once")]
    Twice {
        /// The key.
        key: Box<str>,
    },
    /// A value of the wrong form.
    #[error("{key}={value}: expected {form}")]
    Wrong {
        /// The key.
        key: Box<str>,
        /// The value.
        value: Box<str>,
        /// What would be valid.
        form: Box<str>,
    },
    /// A key that an app cannot do without.
    #[error("app={app} needs {key}=: {form}")]
    Missing {
        /// The app.
        app: &'static str,
        /// The key.
        key: &'static str,
        /// What would be valid.
        form: &'static str,
    },
    /// A value that does not go with another.
    #[error("{key}={value}: {why}")]
    Conflict {
        /// The key.
        key: Box<str>,
        /// The value.
        value: Box<str>,
        /// What excludes what.
        why: Box<str>,
    },
}

/// Returns the names of keys, for a message.
pub(super) fn list<'a>(keys: impl Iterator<Item = &'a Key>) -> Box<str> {
    let names: Vec<&str> = keys.map(|key| key.name).collect();
    names.join(", ").into()
}

/// Returns a question with the name nearest to what was typed, or nothing when none is near.
pub(super) fn hint<'a>(typed: &str, names: impl Iterator<Item = &'a str>) -> Box<str> {
    let nearest = names.map(|name| (distance(typed, name), name)).min();
    match nearest {
        // A third of the letters may differ: enough for a slip of the finger, too little for a guess.
        Some((distance, name)) if distance <= (name.len() / 3).max(1) && distance < typed.len() => {
            let mut text = String::from(" (did you mean \"");
            text.push_str(name);
            text.push_str("\"?)");
            text.into()
        }
        _ => "".into(),
    }
}

/// Returns how many letters must be added, removed or replaced to turn one word into another (Levenshtein).
fn distance(from: &str, to: &str) -> usize {
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in to.bytes().enumerate() {
            let replaced = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_counts_letters() {
        assert_eq!(distance("app", "app"), 0);
        assert_eq!(distance("ap", "app"), 1);
        assert_eq!(distance("apps", "app"), 1);
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "gw"), 2);
    }

    #[test]
    fn only_near_names_are_suggested() {
        let names = ["app", "container-bytes", "containers"];
        assert_eq!(&*hint("conteiners", names.into_iter()), " (did you mean \"containers\"?)");
        assert_eq!(&*hint("aap", names.into_iter()), " (did you mean \"app\"?)");
        assert_eq!(&*hint("root", names.into_iter()), "");
        assert_eq!(&*hint("x", ["gw"].into_iter()), "");
    }
}

//! What is written about `berth` from its own code: manual pages, completions
//! for shells, and the reference of the configuration.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use clap_complete::Shell;

use super::output;
use crate::fault::{OrFault, Result};

/// Every key with its explanation and default; tests compare it with [`crate::config`].
const SAMPLE: &str = include_str!("../../etc/berth.toml");

/// What stands above the reference of the configuration.
const ABOUT: &str = "\
# Configuration

Written from the code by `make docs`; a test compares it. [`etc/berth.toml`](../etc/berth.toml)
holds the same for copying.

`berth serve --config /etc/berth/berth.toml` reads the file once, at its start; a change takes a
restart of the service, which no instance notices. A key that is left out has its default; unknown
keys are errors. `berth check --config /etc/berth/berth.toml` says what is wrong with a file, by key
and line, before the service meets it.
";

/// Hidden: for those who build and package berth.
#[derive(Subcommand)]
pub(super) enum Command {
    /// Write the manual pages of berth and its subcommands
    #[command(hide = true)]
    Manual {
        /// Directory to write them to.
        directory: PathBuf,
    },
    /// Write the reference of the configuration
    #[command(hide = true)]
    Configuration,
}

pub(super) fn run(command: &Command, program: clap::Command) -> Result<()> {
    match command {
        Command::Manual { directory } => manual(directory, program),
        Command::Configuration => output::write(configuration().as_bytes()),
    }
}

/// What `shell` has to be told to complete the commands.
pub(super) fn completion(shell: Shell, mut program: clap::Command) -> Result<()> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut program, "berth", &mut text);
    output::write(&text)
}

/// `berth.1`, `berth-create.1` and so on: one page for each command that is shown.
fn manual(directory: &Path, program: clap::Command) -> Result<()> {
    std::fs::create_dir_all(directory)
        .and_then(|()| clap_mangen::generate_to(program, directory))
        .or_fault(format_args!("writing manual pages to {}", directory.display()))
}

/// The sample configuration as Markdown: sections, keys, defaults, explanations.
fn configuration() -> String {
    let mut text = ABOUT.to_owned();
    // The first paragraph is about the file.
    for paragraph in SAMPLE.split("\n\n").skip(1) {
        text.push_str(&explained(paragraph));
    }
    text
}

/// One paragraph of the sample. Commentary has a space after the `#`, keys have none.
fn explained(paragraph: &str) -> String {
    let mut text = String::new();
    let mut about: Vec<&str> = Vec::new();
    for line in paragraph.lines() {
        if let Some(words) = line.strip_prefix("# ") {
            about.push(words);
        } else if let Some((key, value)) = line.trim_start_matches('#').split_once(" = ") {
            // Writing to memory cannot fail.
            let _ = write!(text, "\n### `{key} = {value}`\n\n{}\n", about.join("\n"));
            about.clear();
        } else if !line.is_empty() {
            let name = line.trim_start_matches('#');
            let _ = write!(text, "\n## `{name}`\n");
            if !about.is_empty() {
                let _ = write!(text, "\n{}\n", about.join("\n"));
            }
            about.clear();
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::Cli;
    use crate::config::Config;

    #[test]
    fn every_shown_command_has_a_page() {
        let directory = tempfile::tempdir().unwrap();
        manual(directory.path(), Cli::command()).unwrap();
        let page = |name: &str| {
            let roff = std::fs::read_to_string(directory.path().join(name)).unwrap();
            roff.replace("\\*(Aq", "'").replace('\\', "")
        };
        assert!(page("berth.1").contains("berth-create(1)"), "{}", page("berth.1"));
        assert!(page("berth-image-import.1").contains("SYNOPSIS"));
        for command in Cli::command().get_subcommands().filter(|c| !c.is_hide_set()) {
            let page = page(&format!("berth-{}.1", command.get_name()));
            let about = command.get_about().unwrap().to_string();
            assert!(page.contains(&about), "{about:?} is not in\n{page}");
        }
        assert!(!directory.path().join("berth-openapi.1").exists());
    }

    #[test]
    fn completions_know_the_subcommands() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "berth", &mut text);
            assert!(String::from_utf8(text).unwrap().contains("resize-confirm"), "{shell}");
        }
    }

    #[test]
    fn the_reference_has_every_section_and_key() {
        let text = configuration();
        let known = toml::Table::try_from(Config::default()).unwrap();
        for (section, keys) in &known {
            let (_, rest) = text.split_once(&format!("\n## `[{section}]`\n")).unwrap();
            let mine = rest.split("\n## `").next().unwrap();
            for (key, value) in keys.as_table().unwrap() {
                let head = format!("\n### `{key} = {value}`\n\n");
                let (_, about) = mine.split_once(&head).unwrap_or_else(|| panic!("no {head:?}"));
                assert!(about.starts_with(char::is_uppercase), "{key}: {about}");
            }
        }
        assert!(text.contains("\n## `[service.tls]`\n"));
    }

    #[test]
    fn the_reference_in_docs_is_current() {
        let kept = include_str!("../../docs/configuration.md");
        assert!(kept == configuration(), "docs/configuration.md is old: run `make docs`");
    }
}

//! Statements to a tree, with every `include` expanded where it stands.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::diag::{Diag, Level};
use super::lexer::{End, Lexer};
use super::source::{
    FileId, Memory, Reader, Source, SourceKind, Sources, Span, full_name, os_error,
};
use super::statement::{Block, Statement};

/// A configuration as written.
#[derive(Debug)]
pub struct Tree {
    /// What stands outside of all blocks, and the fault that ended the reading.
    pub root: Block,
    /// Every text that was read.
    pub sources: Arc<Sources>,
}

/// The name under which `-g` appears in messages.
pub const COMMAND_LINE: &str = "command line";

/// How deep blocks and included files may stand within each other, so that no configuration exhausts the stack.
pub const MAX_DEPTH: usize = 128;

/// Reads a configuration file and all that it includes. `conf_prefix` is the folder that relative `include`s start
/// from, which nginx takes from the path of the main file.
pub fn parse_file(path: &Path, conf_prefix: &Path, reader: &dyn Reader) -> Tree {
    let mut parser = Parser::new(conf_prefix, reader);
    match parser.sources.open(path, reader) {
        Ok(source) => parser.tree(source),
        Err(error) => {
            let root = Block {
                items: Vec::new(),
                end_line: 0,
                error: Some(unreadable(path, &error, None)),
            };
            Tree {
                root,
                sources: Arc::new(parser.sources),
            }
        }
    }
}

/// Reads one text that includes no files. Under the name [`COMMAND_LINE`] it is read as the argument of `-g`.
pub fn parse_text(text: &[u8], shown_name: &str) -> Tree {
    let kind = if shown_name == COMMAND_LINE {
        SourceKind::CommandLine
    } else {
        SourceKind::File
    };
    let nothing = Memory::default();
    let mut parser = Parser::new(Path::new(""), &nothing);
    let source = parser.sources.add(shown_name, text.to_vec(), kind);
    parser.tree(source)
}

/// Reads the argument of `-g`, which may include files.
pub fn parse_command_line(text: &[u8], conf_prefix: &Path, reader: &dyn Reader) -> Tree {
    let mut parser = Parser::new(conf_prefix, reader);
    let source = parser
        .sources
        .add(COMMAND_LINE, text.to_vec(), SourceKind::CommandLine);
    parser.tree(source)
}

struct Parser<'r> {
    conf_prefix: &'r Path,
    reader: &'r dyn Reader,
    sources: Sources,
    /// The files that are being read, outermost first.
    open: Vec<FileId>,
    depth: usize,
}

/// Why the reading of statements was given up.
enum Stop {
    /// A fault in the present block.
    Here(Box<Diag>),
    /// A fault that the last statement's block already holds.
    Within,
}

impl From<Box<Diag>> for Stop {
    fn from(diag: Box<Diag>) -> Self {
        Self::Here(diag)
    }
}

impl<'r> Parser<'r> {
    fn new(conf_prefix: &'r Path, reader: &'r dyn Reader) -> Self {
        Self {
            conf_prefix,
            reader,
            sources: Sources::default(),
            open: Vec::new(),
            depth: 0,
        }
    }

    fn tree(mut self, source: Arc<Source>) -> Tree {
        let mut items = Vec::new();
        self.open.push(source.id);
        let mut lexer = Lexer::new(source);
        let outcome = self.statements(&mut lexer, None, &mut items);
        let root = Block {
            items,
            end_line: lexer.line(),
            error: here(outcome),
        };
        Tree {
            root,
            sources: Arc::new(self.sources),
        }
    }

    /// Reads up to the end of the text, or of the block that the word at `opened` opened.
    fn statements(
        &mut self,
        lexer: &mut Lexer,
        opened: Option<Span>,
        items: &mut Vec<Statement>,
    ) -> Result<(), Stop> {
        loop {
            let sentence = lexer.sentence()?;
            let mut words = sentence.words.into_iter();
            let Some(name) = words.next() else {
                return match (sentence.end, opened) {
                    (End::Text, None) | (End::Close, Some(_)) => Ok(()),
                    (End::Text, Some(opened)) => {
                        let diag = lexer.error("unexpected end of file, expecting \"}\"", opened);
                        Err(diag
                            .with_help(format!(
                                "this block of line {} is never closed",
                                opened.line
                            ))
                            .into())
                    }
                    _ => Err(lexer.unexpected().into()),
                };
            };
            let source = Arc::clone(lexer.source());
            let lossy_name = match String::from_utf8_lossy(&name.text) {
                std::borrow::Cow::Borrowed(_) => None,
                std::borrow::Cow::Owned(name) => Some(name.into()),
            };
            let mut statement = Statement {
                name,
                args: words.collect(),
                block: None,
                file: source.id,
                line: lexer.line(),
                source,
                lossy_name,
            };
            if sentence.end == End::Open && statement.source.kind == SourceKind::CommandLine {
                return Err(statement
                    .error("block directives are not supported in -g option")
                    .into());
            }
            if &*statement.name.text == b"include" {
                if sentence.end == End::Open {
                    return Err(statement.not_terminated().into());
                }
                self.include(&statement, items)?;
                continue;
            }
            let mut outcome = Ok(());
            if sentence.end == End::Open {
                self.enter(&statement)?;
                let mut inner = Vec::new();
                outcome = self.statements(lexer, Some(statement.name.span), &mut inner);
                self.depth -= 1;
                let failed = outcome.is_err();
                statement.block = Some(Block {
                    items: inner,
                    end_line: lexer.line(),
                    error: here(outcome),
                });
                outcome = if failed { Err(Stop::Within) } else { Ok(()) };
            }
            items.push(statement);
            outcome?;
        }
    }

    /// Reads the statements of the files that an `include` names into `items`.
    fn include(&mut self, statement: &Statement, items: &mut Vec<Statement>) -> Result<(), Stop> {
        if statement.len() != 1 {
            return Err(statement.invalid_number_of_arguments().into());
        }
        let path = full_name(self.conf_prefix, statement.arg(0));
        if !path
            .as_os_str()
            .as_bytes()
            .iter()
            .any(|b| b"*?[".contains(b))
        {
            return self.include_file(statement, &path, items);
        }
        for path in self.matches(&path).map_err(|error| {
            statement.error_at(
                0,
                format!("glob() \"{}\" failed {}", path.display(), os_error(&error)),
            )
        })? {
            self.include_file(statement, &path, items)?;
        }
        Ok(())
    }

    fn matches(&self, pattern: &Path) -> io::Result<Vec<PathBuf>> {
        let pattern = pattern
            .to_str()
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        self.reader.glob(pattern)
    }

    fn include_file(
        &mut self,
        statement: &Statement,
        path: &Path,
        items: &mut Vec<Statement>,
    ) -> Result<(), Stop> {
        let source = match self.sources.open(path, self.reader) {
            Ok(source) => source,
            Err(error) => return Err(unreadable(path, &error, Some(statement)).into()),
        };
        if let Some(first) = self.open.iter().position(|id| *id == source.id) {
            let message = format!(
                "include cycle: \"{}\" is included while it is being read",
                source.name
            );
            let chain: Vec<&str> = self
                .open
                .iter()
                .skip(first)
                .filter_map(|id| Some(&*self.sources.get(*id)?.name))
                .collect();
            let help = format!("{} -> {}", chain.join(" -> "), source.name);
            return Err(statement.error_at(0, message).with_help(help).into());
        }
        self.enter(statement)?;
        self.open.push(source.id);
        let outcome = self.statements(&mut Lexer::new(source), None, items);
        self.open.pop();
        self.depth -= 1;
        outcome
    }

    fn enter(&mut self, statement: &Statement) -> Result<(), Stop> {
        if self.depth >= MAX_DEPTH {
            let message =
                format!("blocks and includes are nested too deep, the limit is {MAX_DEPTH}");
            return Err(statement.error(message).into());
        }
        self.depth += 1;
        Ok(())
    }
}

fn here(outcome: Result<(), Stop>) -> Option<Box<Diag>> {
    match outcome {
        Err(Stop::Here(diag)) => Some(diag),
        Err(Stop::Within) | Ok(()) => None,
    }
}

/// The fault of a file that cannot be opened, or that opens but cannot be read, as a folder does.
fn unreadable(path: &Path, error: &io::Error, include: Option<&Statement>) -> Box<Diag> {
    let (path, reason) = (path.display(), os_error(error));
    if error.kind() == io::ErrorKind::IsADirectory {
        return Diag::new(Level::Crit, format!("pread() \"{path}\" failed {reason}"));
    }
    let message = format!("open() \"{path}\" failed {reason}");
    match include {
        Some(statement) => statement.error_at(0, message),
        None => Diag::new(Level::Emerg, message),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The tree in one line, with the fault that ended it.
    fn shown(tree: &Tree) -> String {
        fn write(block: &Block, out: &mut String) {
            for item in &block.items {
                out.push_str(item.name());
                for word in &item.args {
                    out.push(' ');
                    out.push_str(&String::from_utf8_lossy(&word.text));
                }
                match &item.block {
                    Some(inner) => {
                        out.push('{');
                        write(inner, out);
                        out.push('}');
                    }
                    None => out.push(';'),
                }
            }
            if let Some(diag) = &block.error {
                out.push('!');
                out.push_str(&diag.first_line());
            }
        }
        let mut out = String::new();
        write(&tree.root, &mut out);
        out
    }

    fn text(text: &str) -> String {
        shown(&parse_text(text.as_bytes(), "f"))
    }

    /// Parses `/c/n.conf` of a few files.
    fn files(files: &[(&str, &str)]) -> Tree {
        let memory: Memory = files.iter().copied().collect();
        parse_file(Path::new("/c/n.conf"), Path::new("/c"), &memory)
    }

    #[test]
    fn blocks_within_blocks() {
        let tree = parse_text(b"a;\nb c {\n d { e;\n}\n}\nf\n;", "f");
        assert_eq!(shown(&tree), "a;b c{d{e;}}f;");
        let b = &tree.root.items[1];
        let d = &b.block.as_ref().unwrap().items[0];
        assert_eq!((b.line, b.block.as_ref().unwrap().end_line), (2, 5));
        assert_eq!((d.line, d.block.as_ref().unwrap().end_line), (3, 4));
        assert_eq!((tree.root.items[2].line, tree.root.end_line), (7, 7));
        assert!(tree.root.syntax_error().is_none());
    }

    #[test]
    fn a_fault_stands_behind_what_was_read_before_it() {
        assert_eq!(
            text("a;\nb { c;\n d { e; ;"),
            "a;b{c;d{e;!unexpected \";\" in f:3}}"
        );
        assert_eq!(
            text("a { b;\n"),
            "a{b;!unexpected end of file, expecting \"}\" in f:2}"
        );
        assert_eq!(
            text("a {} b\n"),
            "a{}!unexpected end of file, expecting \";\" or \"}\" in f:2"
        );
        assert_eq!(text("a;}"), "a;!unexpected \"}\" in f:1");
        assert_eq!(text("a { } }\nb;"), "a{}!unexpected \"}\" in f:1");
        let tree = parse_text(b"http {\n server {\n", "f");
        let diag = tree.root.syntax_error().unwrap();
        assert_eq!(
            (diag.line, diag.snippet.as_ref().unwrap().marked.as_str()),
            (3, "server")
        );
    }

    #[test]
    fn the_command_line() {
        let g = |text: &str| shown(&parse_text(text.as_bytes(), COMMAND_LINE));
        assert_eq!(g("daemon off; pid x;"), "daemon off;pid x;");
        assert_eq!(
            g("daemon off"),
            "!unexpected end of parameter, expecting \";\" in command line"
        );
        assert_eq!(
            g("events {"),
            "!block directives are not supported in -g option in command line"
        );
        assert_eq!(g("}"), "!unexpected \"}\" in command line");
        assert_eq!(
            g("include x;"),
            "!open() \"x\" failed (2: No such file or directory) in command line"
        );
        let memory: Memory = [("/c/x", "events {\n}\na")].into_iter().collect();
        let tree = parse_command_line(b"a; include x; b;", Path::new("/c/"), &memory);
        assert_eq!(
            shown(&tree),
            "a;events{}!unexpected end of file, expecting \";\" or \"}\" in /c/x:3"
        );
    }

    #[test]
    fn included_statements_stand_in_the_place_of_the_include() {
        let tree = files(&[
            (
                "/c/n.conf",
                "a; include x.conf; h { include d/*.conf; 'include' \"/e/f\"; } z;",
            ),
            ("/c/x.conf", "x1;\nx2 { x3; }"),
            ("/c/d/2.conf", "two;"),
            ("/c/d/1.conf", "one; include x.conf;"),
            ("/e/f", "# nothing"),
        ]);
        assert_eq!(shown(&tree), "a;x1;x2{x3;}h{one;x1;x2{x3;}two;}z;");
        let names: Vec<_> = tree.sources.iter().map(|s| &*s.name).collect();
        assert_eq!(
            names,
            [
                "/c/n.conf",
                "/c/x.conf",
                "/c/d/1.conf",
                "/c/d/2.conf",
                "/e/f"
            ]
        );
        let x2 = &tree.root.items[2];
        assert_eq!(x2.error("m").first_line(), "m in /c/x.conf:2");
        assert_eq!(tree.sources.get(x2.file).unwrap().name, x2.source.name);

        let again = parse_file(
            Path::new("/c/n.conf"),
            Path::new("/c"),
            &Memory::from(&*tree.sources),
        );
        assert_eq!(shown(&again), shown(&tree));
    }

    #[test]
    fn faults_of_include() {
        let fault = |text: &str| {
            shown(&files(&[
                ("/c/n.conf", text),
                ("/c/open", "o {"),
                ("/c/close", "}"),
            ]))
        };
        let missing = "open() \"/c/none\" failed (2: No such file or directory) in /c/n.conf:2";
        assert_eq!(fault("a {\ninclude none; }"), format!("a{{!{missing}}}"));
        assert_eq!(fault("include none*; a;"), "a;");
        assert_eq!(
            fault("include;"),
            "!invalid number of arguments in \"include\" directive in /c/n.conf:1"
        );
        assert_eq!(
            fault("include a b;"),
            "!invalid number of arguments in \"include\" directive in /c/n.conf:1"
        );
        assert_eq!(
            fault("include a {"),
            "!directive \"include\" is not terminated by \";\" in /c/n.conf:1"
        );
        assert_eq!(
            fault("a { include open; } b;"),
            "a{o{!unexpected end of file, expecting \"}\" in /c/open:1}}"
        );
        assert_eq!(
            fault("a { include close; b;"),
            "a{!unexpected \"}\" in /c/close:1}"
        );
        assert_eq!(fault("\\include x;"), "\\include x;");
    }

    #[test]
    fn files_that_cannot_be_read() {
        let tree = files(&[]);
        assert_eq!(
            shown(&tree),
            "!open() \"/c/n.conf\" failed (2: No such file or directory)"
        );
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("n.conf");
        std::fs::write(&path, "include \"\";").unwrap();
        let tree = parse_file(&path, dir.path(), &super::super::Disk);
        let diag = tree.root.syntax_error().unwrap();
        assert_eq!(
            diag.first_line(),
            format!(
                "pread() \"{}/\" failed (21: Is a directory)",
                dir.path().display()
            )
        );
        assert_eq!(diag.level, Level::Crit);
    }

    #[test]
    fn cycles_and_depth_are_refused() {
        let tree = files(&[
            ("/c/n.conf", "a; include b;"),
            ("/c/b", "b;\ninclude c;"),
            ("/c/c", "c;\n\ninclude b;"),
        ]);
        let cycle = "include cycle: \"/c/b\" is included while it is being read in /c/c:3";
        assert_eq!(shown(&tree), format!("a;b;c;!{cycle}"));
        assert_eq!(
            tree.root.syntax_error().unwrap().help.as_deref(),
            Some("/c/b -> /c/c -> /c/b")
        );

        let nested = |n: usize| format!("{}{}", "a {".repeat(n), "}".repeat(n));
        assert!(
            parse_text(nested(MAX_DEPTH).as_bytes(), "f")
                .root
                .syntax_error()
                .is_none()
        );
        let tree = parse_text(nested(100_000).as_bytes(), "f");
        assert!(
            tree.root
                .syntax_error()
                .unwrap()
                .message
                .contains("nested too deep")
        );
    }

    #[test]
    fn a_file_is_read_once() {
        struct Counting(std::cell::Cell<usize>);
        impl Reader for Counting {
            fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
                self.0.set(self.0.get() + 1);
                Ok(if path.ends_with("n.conf") {
                    b"include x; a { include x; }".to_vec()
                } else {
                    b"x;".to_vec()
                })
            }
            fn glob(&self, _: &str) -> io::Result<Vec<PathBuf>> {
                Ok(Vec::new())
            }
        }
        let reader = Counting(std::cell::Cell::new(0));
        assert_eq!(
            shown(&parse_file(Path::new("/n.conf"), Path::new("/"), &reader)),
            "x;a{x;}"
        );
        assert_eq!(reader.0.get(), 2);
    }

    /// Writes words so that they read back the same.
    fn quoted(word: &str) -> String {
        format!("\"{}\"", word.replace('\\', "\\\\").replace('"', "\\\""))
    }

    proptest! {
        #[test]
        fn no_text_panics(text in prop::collection::vec(any::<u8>(), 0..300)) {
            let tree = parse_text(&text, "f");
            if let Some(diag) = tree.root.syntax_error() { diag.to_string(); }
            for item in &tree.root.items { item.error_at(0, "m").to_string(); }
        }

        #[test]
        fn no_near_configuration_panics(text in r#"([a-c${}\\"';#) \t\n]|include|\x00|é){0,60}"#) {
            for name in ["f", COMMAND_LINE] {
                let tree = parse_text(text.as_bytes(), name);
                if let Some(diag) = tree.root.syntax_error() { diag.to_string(); }
            }
        }

        #[test]
        fn quoted_words_read_back(words in prop::collection::vec(".{0,20}", 1..6)) {
            let line: Vec<String> = words.iter().map(|w| quoted(w)).collect();
            let tree = parse_text(format!("d {};", line.join(" ")).as_bytes(), "f");
            prop_assert!(tree.root.error.is_none());
            let read: Vec<String> = tree.root.items[0].args.iter().map(|w| String::from_utf8_lossy(&w.text).into_owned()).collect();
            prop_assert_eq!(read, words);
        }
    }
}

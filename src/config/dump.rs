//! The output of `-T`.

use std::io::{self, Write};

use super::source::{SourceKind, Sources};

/// Writes every file that was read, each once, in the order of reading.
pub fn dump(sources: &Sources, out: &mut impl Write) -> io::Result<()> {
    for source in sources
        .iter()
        .filter(|source| source.kind == SourceKind::File)
    {
        writeln!(out, "# configuration file {}:", source.name)?;
        out.write_all(&source.bytes)?;
        out.write_all(b"\n")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{Memory, parse_command_line, parse_file};

    #[test]
    fn files_in_the_order_of_reading() {
        let memory: Memory = [
            (
                "/c/n.conf",
                "include a; include b; include a; include ./a;\n",
            ),
            ("/c/a", "a;"),
            ("/c/b", "\u{e9};\n"),
        ]
        .into_iter()
        .collect();
        let mut out = Vec::new();
        dump(
            &parse_file(Path::new("/c/n.conf"), Path::new("/c"), &memory).sources,
            &mut out,
        )
        .unwrap();
        let expected = "# configuration file /c/n.conf:\ninclude a; include b; include a; include ./a;\n\n\
                        # configuration file /c/a:\na;\n# configuration file /c/b:\n\u{e9};\n\n# configuration file /c/./a:\na;\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn the_command_line_is_no_file() {
        let mut out = Vec::new();
        dump(
            &parse_command_line(b"a;", Path::new("/"), &Memory::default()).sources,
            &mut out,
        )
        .unwrap();
        assert!(out.is_empty());
    }
}

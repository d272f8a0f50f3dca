//! Folders of temporary files.

/// Where temporary files are made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TempPath {
    /// The folder.
    pub path: std::path::PathBuf,
    /// Characters of the hashed levels of subfolders, up to three.
    pub levels: Vec<u8>,
}

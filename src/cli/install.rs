//! `flotilla install` and `flotilla uninstall`.

//! stub
use crate::lab::Result;
pub fn run(_: &[String]) -> Result<bool> {
    Ok(true)
}
pub fn sweep_when_closed(_: &[String]) -> Result<bool> {
    Ok(true)
}

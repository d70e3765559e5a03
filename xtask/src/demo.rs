//! stub
use crate::lab::Result;
pub fn run(_: &[String]) -> Result<bool> {
    let i = crate::demo_image::get()?;
    println!("{} {}", i.root.display(), i.bytes);
    Ok(true)
}
pub fn sweep_when_closed(_: &[String]) -> Result<bool> {
    Ok(true)
}

//! Images: recognised by content, unpacked into content-addressed layers.

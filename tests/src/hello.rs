//! TLS hellos that no TLS library would send.

/// The parts of a ClientHello that a test may bend.
#[derive(Clone, Debug, Default)]
pub struct Bent {
    /// The bodies of `server_name` extensions, one extension each.
    pub server_names: Vec<Vec<u8>>,
    /// Bytes of padding (RFC 7685), to make it long.
    pub padding: usize,
    /// Whether there is an `encrypted_client_hello` extension (RFC 9849), as browsers send it at random.
    pub ech: bool,
}

impl Bent {
    /// A hello whose one `server_name` extension lists these names.
    #[must_use]
    pub fn naming(names: &[&[u8]]) -> Self {
        Self { server_names: vec![server_name_list(names)], ..Self::default() }
    }

    /// The handshake message.
    #[must_use]
    pub fn message(&self) -> Vec<u8> {
        let mut extensions = Vec::new();
        for body in &self.server_names {
            extensions.extend(extension(0, body));
        }
        extensions.extend(extension(10, &[0, 2, 0, 0x1d])); // supported_groups: x25519
        extensions.extend(extension(13, &[0, 2, 4, 3])); // signature_algorithms
        extensions.extend(extension(43, &[2, 3, 4])); // supported_versions: TLS 1.3
        if self.ech {
            extensions.extend(extension(0xfe0d, &[0; 32]));
        }
        if self.padding > 0 {
            extensions.extend(extension(21, &vec![0; self.padding]));
        }
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.push(0); // no session
        body.extend([0, 2, 0x13, 0x01, 1, 0]); // one cipher suite, null compression
        body.extend(length16(&extensions));
        body.extend(extensions);
        let length = u32::try_from(body.len()).unwrap().to_be_bytes();
        [&[1], &length[1..], &body].concat()
    }

    /// The message in records of at most `size` bytes.
    #[must_use]
    pub fn records(&self, size: usize) -> Vec<u8> {
        self.message().chunks(size).flat_map(record).collect()
    }

    /// The message as a client sends it.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        self.records(16_384)
    }
}

/// Cuts the handshake message of one record into records of `size` bytes.
///
/// # Panics
/// If `hello` is not one record.
#[must_use]
pub fn in_records(hello: &[u8], size: usize) -> Vec<u8> {
    let (header, message) = hello.split_at(5);
    assert_eq!(usize::from(u16::from_be_bytes([header[3], header[4]])), message.len(), "one record");
    message.chunks(size).flat_map(record).collect()
}

fn server_name_list(names: &[&[u8]]) -> Vec<u8> {
    let list: Vec<u8> = names.iter().flat_map(|name| [&[0], &length16(name)[..], name].concat()).collect();
    [&length16(&list)[..], &list].concat()
}

fn extension(kind: u16, body: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &length16(body), body].concat()
}

fn record(fragment: &[u8]) -> Vec<u8> {
    [&[22, 3, 1], &length16(fragment)[..], fragment].concat()
}

fn length16(bytes: &[u8]) -> [u8; 2] {
    u16::try_from(bytes.len()).unwrap().to_be_bytes()
}

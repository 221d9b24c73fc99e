//! AWS's own code for enclave image files, as commands.
//!
//!     eif-tool build KERNEL CMDLINE METADATA OUTPUT RAMDISK...   as `nitro-cli build-enclave` assembles an image
//!     eif-tool sign FILE KEY CERTIFICATE                         `nitro-cli sign-eif`
//!     eif-tool describe FILE                                     `nitro-cli describe-eif`
//!     eif-tool version
//!
//! `build` and `sign` print the measurements as JSON, `describe` what nitro-cli prints.

use aws_nitro_enclaves_image_format::utils::EifBuilder;
use nitro_cli::common::commands_parser::SignEifArgs;
use sha2::{Digest, Sha384};
use std::fs::{read_to_string, File};
use std::path::Path;
use std::process::exit;

fn build(kernel: &str, cmdline: &str, metadata: &str, output: &str, ramdisks: &[&str]) {
    let info = serde_json::from_str(&read_to_string(metadata).unwrap()).unwrap();
    let mut builder = EifBuilder::new(
        Path::new(kernel),
        cmdline.into(),
        None,
        Sha384::new(),
        0,
        info,
    );
    for ramdisk in ramdisks {
        builder.add_ramdisk(Path::new(ramdisk));
    }
    let measurements = builder.write_to(&mut File::create(output).unwrap());
    println!("{}", serde_json::to_string(&measurements).unwrap());
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["build", kernel, cmdline, metadata, output, ref ramdisks @ ..] => {
            build(kernel, cmdline, metadata, output, ramdisks);
            Ok(())
        }
        ["sign", file, key, certificate] => nitro_cli::sign_eif(SignEifArgs {
            eif_path: file.into(),
            private_key: Some(key.into()),
            signing_certificate: Some(certificate.into()),
        }),
        ["version"] => {
            println!("{}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
        ["describe", file] => nitro_cli::describe_eif(file.into()).map(|_| ()),
        _ => {
            eprintln!("usage: eif-tool build|sign|describe|version ...");
            exit(2)
        }
    };
    if let Err(failure) = done {
        eprintln!("{:?}", failure);
        exit(1)
    }
}

"""What the tests of docs/index.html have in common: where the page takes its runtime from."""

CDN = "cdn.jsdelivr.net"
VERSION = "314.0.3"

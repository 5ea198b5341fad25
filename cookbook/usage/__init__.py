"""What commands take: their flags, read from settings and signatures; the help, the mistakes and the completion of them."""

"""What more servers are known to say than the demo shows, as in `account_pool.demo.scripts`."""

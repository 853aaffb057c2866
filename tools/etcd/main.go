// Command etcd is the etcd server as its own modules ship it, built from the versions pinned in go.mod.
//
// The tests run against it; nothing of it is part of Conveyor.
package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() {
	etcdmain.Main(os.Args)
}

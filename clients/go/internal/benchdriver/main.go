// Benchdriver is a driver that does nothing, for `make bench`: its argument is its name.
package main

import (
	"context"
	"log"
	"os"

	"github.com/conveyor-ci/conveyor/clients/go/driver"
)

func main() {
	if err := driver.New(os.Args[1], reconcile).Run(context.Background()); err != nil {
		log.Fatal(err)
	}
}

// reconcile succeeds with a little data.
func reconcile(context.Context, *driver.Job) (driver.Result, error) {
	return driver.Result{Data: map[string]int{"n": 1}}, nil
}

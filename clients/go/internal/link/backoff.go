package link

import (
	"context"
	"math/rand/v2"
	"time"
)

// Backoff is the waits between attempts: exponential, with full jitter in their upper half. Not for several goroutines.
type Backoff struct {
	// Longest is the longest wait; 5 s when it is 0.
	Longest time.Duration
	next    time.Duration
}

const firstWait = 100 * time.Millisecond

// Reset forgets the failures.
func (b *Backoff) Reset() { b.next = 0 }

// Next returns the next wait.
func (b *Backoff) Next() time.Duration {
	longest := b.Longest
	if longest == 0 {
		longest = 5 * time.Second
	}
	if b.next == 0 {
		b.next = firstWait
	}
	wait := b.next
	b.next = min(2*wait, longest)
	return wait/2 + rand.N(wait/2)
}

// Sleep waits, or returns ctx's error when it is done before.
func Sleep(ctx context.Context, wait time.Duration) error {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

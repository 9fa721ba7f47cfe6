/** Waits that say, when time runs out, which line waited for what and what it saw last. */

/** How long a wait may take; generous, since only a hang takes longer. */
const PATIENCE_SECONDS = 30;

export function sleep(milliseconds: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}

/**
 * Waits for a promise.
 *
 * @throws {Error} when time runs out, with the description; its stack names the line that waited
 */
export async function waitFor<T>(
  promise: Promise<T>,
  describe: string | (() => string),
  seconds = PATIENCE_SECONDS,
): Promise<T> {
  const late = new Error();
  const { promise: timeout, reject } = Promise.withResolvers<never>();
  const timer = setTimeout(() => {
    const what = typeof describe === "string" ? describe : describe();
    late.message = `waited ${seconds} s for ${what}`;
    reject(late);
  }, seconds * 1000);
  return await Promise.race([promise, timeout]).finally(() => clearTimeout(timer));
}

/** Looks again and again until what it sees is right, and gives that. Throws as `waitFor` does. */
export async function waitUntil<T>(
  what: string,
  look: () => T | Promise<T>,
  isRight: (seen: T) => boolean = Boolean,
  seconds = PATIENCE_SECONDS,
): Promise<T> {
  let seen: T;
  let isOver = false;
  const poll = async () => {
    while (!isRight(seen = await look()) && !isOver) await sleep(20);
    return seen;
  };
  const describe = () => `${what}; seen last: ${Deno.inspect(seen)}`;
  return await waitFor(poll(), describe, seconds).finally(() => isOver = true);
}

/** Repeats a trial that chance or a busy machine may spoil, at most five times. */
export async function repeatUntil<T>(isRight: (result: T) => boolean, trial: () => Promise<T>) {
  let result = await trial();
  for (let again = 0; again < 4 && !isRight(result); again++) result = await trial();
  return result;
}

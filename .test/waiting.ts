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

/**
 * Looks again and again until what it sees is right, and gives that.
 *
 * @throws {Error} when time runs out, with what was seen last; its stack names the line that waited
 */
export async function waitUntil<T>(
  what: string,
  look: () => T | Promise<T>,
  isRight: (seen: T) => boolean = Boolean,
  seconds = PATIENCE_SECONDS,
): Promise<T> {
  const late = new Error();
  const deadline = Date.now() + seconds * 1000;
  while (true) {
    const seen = await look();
    if (isRight(seen)) return seen;
    if (Date.now() > deadline) {
      late.message = `waited ${seconds} s for ${what}; seen last: ${Deno.inspect(seen)}`;
      throw late;
    }
    await sleep(20);
  }
}

/**
 * Repeats a trial that chance or a busy machine may spoil, at most five times.
 *
 * @returns the first result that is right, or else the last
 */
export async function repeatUntil<T>(
  isRight: (result: T) => boolean,
  trial: () => Promise<T>,
): Promise<T> {
  let result = await trial();
  for (let again = 0; again < 4 && !isRight(result); again++) result = await trial();
  return result;
}

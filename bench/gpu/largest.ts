/** @module The index of the largest number; of equals the first. */
export function largest(numbers: Float32Array): number {
  let best = 0
  for (let i = 1; i < numbers.length; i++) if (numbers[i] > numbers[best]) best = i
  return best
}
